"""Schedules: every tick has one outcome, whoever looks and however often, and repeated failure ends them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from claims import admit_queued, claim_one
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import IntegrityError
from suites import GRADER, METHOD, ROWS, right_in, run

from zhub.database.sessions import system_session
from zhub.models import Job, Schedule, ScheduleTick
from zhub.queue import attempts
from zhub.queue.attempts import Failure
from zhub.queue.desired import apply_requested_changes
from zhub.schedules.firing import process_next_due
from zhub.storage.directory import DirectoryStore
from zhub.tenancy.keys import Caller

Client = openai.OpenAI
Ask = Callable[..., Any]
TRAINING = {
    "model": "tiny",
    "method": METHOD,
    "suffix": "summer",
}


@pytest.fixture
def schedule(ask: Ask, suite_file: str) -> Ask:
    """POST /v1/schedules; every Monday at three unless said otherwise."""

    def post(**options: Any) -> Any:
        body = {"name": "weekly", "dataset": "suite", "training": TRAINING, "cron": "0 3 * * 1"}
        return ask("post", "/schedules", body | options)

    return post


@pytest.fixture
def look(system_engine: Engine) -> Callable[[], int]:
    """Do what a scheduler's thread does; return how often there was something to do."""

    def once() -> int:
        count = 0
        while True:
            with system_session(system_engine) as session:
                if not process_next_due(session):
                    return count
            count += 1
            assert count < 50, "there is no end to it"

    return once


def is_due(engine: Engine, ago: timedelta = timedelta(0)) -> datetime:
    """Set the clock of every schedule: its next tick was so long ago, on the minute."""
    with system_session(engine) as session:
        now: datetime = session.scalars(select(func.now())).one()
        tick = (now - ago).replace(second=0, microsecond=0)
        session.execute(
            text("UPDATE schedules SET cron = '* * * * *', next_at = :tick, fires_at = :tick"), {"tick": tick}
        )
        session.execute(text("UPDATE schedules SET misfire = 'fire_once'"))
    return tick


def outcomes(engine: Engine) -> list[str]:
    with system_session(engine) as session:
        return list(session.scalars(select(ScheduleTick.outcome).order_by(ScheduleTick.id)))


def trainings(engine: Engine) -> list[Job]:
    with system_session(engine) as session:
        return list(session.scalars(select(Job).where(Job.kind == "train").order_by(Job.id)))


def end(engine: Engine, *, well: bool) -> None:
    """Let every training end."""
    with system_session(engine) as session:
        admit_queued(session)
        while claim := claim_one(session, "train"):
            if well:
                attempts.succeed(session, claim.job_id, claim.fence)
            else:
                attempts.fail(session, claim.job_id, claim.fence, Failure("x", "It broke."))


# What is asked for


def test_a_schedule_says_when_it_runs_next(ask: Ask, schedule: Ask) -> None:
    made = schedule(timezone="Europe/Paris")
    assert (made["status"], made["dataset"], made["overlap"], made["failures"]) == ("active", "suite", "skip", 0)
    runs = [datetime.fromtimestamp(run, UTC) for run in made["next_runs"]]
    assert len(runs) == 5 and all(run > datetime.now(UTC) and run.isoweekday() == 1 for run in runs)
    assert ask("get", "/schedules")["data"] == [made]
    assert ask("get", f"/schedules/{made['id']}") == made


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"cron": None}, 400, "cron"),
        ({"cron": "0 3 * *"}, 400, "cron"),
        ({"timezone": "Mars"}, 400, "timezone"),
        ({"dataset": "none"}, 404, None),
        ({"name": "Not a name"}, 400, "name"),
        ({"training": TRAINING | {"training_file": "file-0"}}, 400, "training.training_file"),
        ({"training": TRAINING | {"nonsense": 1}}, 400, "training.nonsense"),
        ({"training": TRAINING | {"model": "none"}}, 404, None),
        ({"training": TRAINING | {"method": {"type": "magic"}}}, 400, "training.method.type"),
        ({"training": {"model": "tiny", "method": {"type": "supervised"}}}, 400, "training.training_file"),
        ({"overlap": "sometimes"}, 400, "overlap"),
        ({"jitter_s": -1}, 400, "jitter_s"),
        ({"catch_up_s": 10**9}, 400, "catch_up_s"),
        ({"on_feedback": 0}, 400, "on_feedback"),
        ({"on_feedback": 1.5}, 400, "on_feedback"),
    ],
)
def test_what_could_never_run_is_refused_and_leaves_nothing(
    ask: Ask, schedule: Ask, system_engine: Engine, changed: dict[str, Any], status: int, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        schedule(**changed)
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert ask("get", "/schedules")["data"] == [] and trainings(system_engine) == []


def test_two_schedules_of_one_name_are_refused(schedule: Ask) -> None:
    schedule()
    with pytest.raises(openai.ConflictError, match="'weekly' already"):
        schedule()


def test_a_schedule_is_not_changed_to_the_name_of_another(ask: Ask, schedule: Ask, publish_version: Ask) -> None:
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version()})
    schedule()
    other = schedule(name="daily")
    body = {"name": "weekly", "dataset": "suite", "training": TRAINING, "on_regression": "main.summer@prod"}
    with pytest.raises(openai.ConflictError, match="'weekly' already"):
        ask("put", f"/schedules/{other['id']}", body)


def test_a_schedule_can_be_changed_and_deleted(ask: Ask, schedule: Ask, look: Ask, system_engine: Engine) -> None:
    made = schedule()
    body = {"name": "daily", "dataset": "suite", "training": TRAINING, "cron": "0 4 * * *", "overlap": "allow"}
    changed = ask("put", f"/schedules/{made['id']}", body)
    assert (changed["id"], changed["name"], changed["cron"], changed["overlap"]) == (
        made["id"],
        "daily",
        "0 4 * * *",
        "allow",
    )
    is_due(system_engine)
    look()
    assert ask("delete", f"/schedules/{made['id']}")["deleted"] is True
    with pytest.raises(openai.NotFoundError):
        ask("get", f"/schedules/{made['id']}")
    assert len(trainings(system_engine)) == 1


def test_a_schedule_can_be_changed_from_times_to_what_happens_and_back(ask: Ask, schedule: Ask) -> None:
    made = schedule()
    body = {"name": "weekly", "dataset": "suite", "training": TRAINING}
    changed = ask("put", f"/schedules/{made['id']}", body | {"on_new_data": True, "on_feedback": 5})
    assert (changed["cron"], changed["on_feedback"], changed["next_runs"]) == (None, 5, [])
    back = ask("put", f"/schedules/{made['id']}", body | {"cron": made["cron"]})
    assert (back["on_feedback"], back["new_feedback"], back["next_runs"]) == (None, None, made["next_runs"])


# Ticks


def test_a_tick_trains_on_the_newest_version_of_the_dataset(
    ask: Ask, schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    made = schedule()
    newest = make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    tick = is_due(system_engine)
    assert look() == 1
    (row,) = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert (row["outcome"], row["tick"]) == ("fired", tick.strftime("%Y-%m-%dT%H:%M:%SZ"))
    job = ask("get", f"/fine_tuning/jobs/{row['job']}")
    assert (job["training_file"], job["suffix"]) == (newest, "summer")
    assert job["metadata"] == {"schedule": "weekly", "tick": row["tick"]}


def test_schedulers_at_the_same_time_fire_a_tick_once(schedule: Ask, system_engine: Engine) -> None:
    schedule()
    is_due(system_engine)

    def look_once(_number: int) -> bool:
        with system_session(system_engine) as session:
            return process_next_due(session)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(look_once, range(6))) >= 1
    assert outcomes(system_engine) == ["fired"] and len(trainings(system_engine)) == 1


def test_a_schedule_that_another_scheduler_looks_after_is_not_waited_for(schedule: Ask, system_engine: Engine) -> None:
    schedule()
    is_due(system_engine)
    with system_session(system_engine) as one, system_session(system_engine) as other:
        assert process_next_due(one) is True
        assert process_next_due(other) is False


def test_a_tick_that_comes_again_has_fired_already(schedule: Ask, look: Ask, system_engine: Engine) -> None:
    schedule(overlap="allow", cron="0 3 * * *", catch_up_s=172800)
    for _ in range(2):
        with system_session(system_engine) as session:
            session.execute(text("UPDATE schedules SET next_at = now() - interval '25 hours', fires_at = now()"))
        assert look() == 1
    assert outcomes(system_engine).count("fired") == len(trainings(system_engine)) == 1


def test_no_tick_has_two_rows(schedule: Ask, look: Ask, system_engine: Engine) -> None:
    schedule()
    is_due(system_engine)
    look()
    with system_session(system_engine) as session:
        fired = session.scalars(select(ScheduleTick)).one()
    again = ScheduleTick(org_id=fired.org_id, schedule_id=fired.schedule_id, key=fired.key, outcome="fired")
    with pytest.raises(IntegrityError), system_session(system_engine) as session:
        session.add(again)


def test_a_scheduler_that_dies_before_it_commits_loses_no_tick_and_fires_none_twice(
    schedule: Ask, look: Ask, system_engine: Engine
) -> None:
    schedule()
    is_due(system_engine)
    with pytest.raises(ZeroDivisionError), system_session(system_engine) as session:
        assert process_next_due(session)
        raise ZeroDivisionError
    assert outcomes(system_engine) == []
    look()
    look()
    assert outcomes(system_engine) == ["fired"]


def test_missed_ticks_have_rows_and_the_newest_fires(schedule: Ask, look: Ask, system_engine: Engine) -> None:
    schedule()
    is_due(system_engine, timedelta(minutes=5))
    look()
    assert outcomes(system_engine) == ["skipped_misfire"] * 5 + ["fired"]


@pytest.mark.parametrize(
    ("overlap", "expected", "states"),
    [
        ("skip", ["fired", "skipped_overlap"], ["queued"]),
        ("buffer_one", ["fired", "buffered"], ["queued"]),
        ("allow", ["fired", "fired"], ["queued", "queued"]),
        ("cancel_running", ["fired", "fired"], ["cancelled", "queued"]),
    ],
)
def test_a_tick_while_the_job_of_another_runs_is_left_to_the_policy(
    ask: Ask,
    schedule: Ask,
    look: Ask,
    system_engine: Engine,
    overlap: str,
    expected: list[str],
    states: list[str],
) -> None:
    made = schedule(overlap=overlap)
    ask("post", f"/schedules/{made['id']}/run")
    is_due(system_engine)
    look()
    with system_session(system_engine) as session:
        apply_requested_changes(session)
    assert outcomes(system_engine) == expected
    assert [job.state for job in trainings(system_engine)] == states


def test_a_buffered_tick_fires_when_the_earlier_job_has_ended_and_no_more_than_one_waits(
    ask: Ask, schedule: Ask, look: Ask, system_engine: Engine
) -> None:
    made = schedule(overlap="buffer_one")
    for _ in range(3):
        ask("post", f"/schedules/{made['id']}/run")
    assert outcomes(system_engine) == ["fired", "buffered", "skipped_overlap"]
    end(system_engine, well=True)
    look()
    assert outcomes(system_engine) == ["fired", "fired", "skipped_overlap"]
    assert len(trainings(system_engine)) == 2


def test_a_refused_run_says_why(ask: Ask, schedule: Ask, look: Ask, suite_file: str, system_engine: Engine) -> None:
    made = schedule()
    ask("delete", f"/files/{suite_file}")
    is_due(system_engine)
    look()
    (row,) = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert (row["outcome"], row["job"]) == ("refused", None)
    assert "no version that passed its check" in row["message"]
    assert ask("get", f"/schedules/{made['id']}")["failures"] == 1


def test_repeated_failure_pauses_a_schedule_and_resuming_begins_anew(
    ask: Ask, schedule: Ask, look: Ask, system_engine: Engine
) -> None:
    made = schedule(max_failures=2)
    path = f"/schedules/{made['id']}"
    for failures in (1, 2):
        ask("post", f"{path}/run")
        end(system_engine, well=False)
        look()
        assert ask("get", path)["failures"] == failures
    found = ask("get", path)
    assert (found["status"], found["next_runs"]) == ("paused", [])
    assert "2 runs in a row failed, the last one: It broke." in found["paused_because"]
    is_due(system_engine)
    assert look() == 0
    resumed = ask("post", f"{path}/resume")
    assert (resumed["status"], resumed["failures"]) == ("active", 0)
    assert min(resumed["next_runs"]) > datetime.now(UTC).timestamp()


def test_a_success_ends_the_count_of_failures_and_a_cancellation_is_none(
    ask: Ask, schedule: Ask, look: Ask, system_engine: Engine
) -> None:
    made = schedule()
    path = f"/schedules/{made['id']}"
    ask("post", f"{path}/run")
    end(system_engine, well=False)
    tick = ask("post", f"{path}/run")
    ask("post", f"/fine_tuning/jobs/{tick['job']}/cancel")
    with system_session(system_engine) as session:
        apply_requested_changes(session)
    look()
    assert ask("get", path)["failures"] == 1
    ask("post", f"{path}/run")
    end(system_engine, well=True)
    look()
    assert ask("get", path)["failures"] == 0


def test_ticks_of_a_pause_are_not_caught_up(ask: Ask, schedule: Ask, look: Ask, system_engine: Engine) -> None:
    made = schedule(cron="* * * * *")
    ask("post", f"/schedules/{made['id']}/pause")
    is_due(system_engine, timedelta(minutes=30))
    assert look() == 0
    ask("post", f"/schedules/{made['id']}/resume")
    assert look() == 0 and outcomes(system_engine) == []


def test_a_schedule_that_breaks_is_paused_and_stands_in_no_others_way(
    ask: Ask, schedule: Ask, look: Ask, system_engine: Engine
) -> None:
    broken, sound = schedule(name="broken"), schedule(name="sound")
    is_due(system_engine)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE schedules SET timezone = 'Nowhere' WHERE name = 'broken'"))
    look()
    assert "zhub failed to fire it" in ask("get", f"/schedules/{broken['id']}")["paused_because"]
    assert [tick["outcome"] for tick in ask("get", f"/schedules/{sound['id']}/ticks")["data"]] == ["fired"]


# New data


def test_new_data_fires_once_when_it_has_passed_its_check(
    schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    schedule(cron=None, on_new_data=True)
    assert look() == 0
    make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["fired"]


def test_an_older_version_that_comes_to_the_fore_is_no_new_data(
    ask: Ask, schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    newest = make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    schedule(cron=None, on_new_data=True)
    ask("delete", f"/files/{newest}")
    look()
    assert outcomes(system_engine) == [] and look() == 0


def test_data_that_did_not_pass_its_check_fires_nothing(
    schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    schedule(cron=None, on_new_data=True)
    make_file(caller, b"no json\n")
    assert look() == 0


def test_a_run_with_a_gate_asks_for_a_promotion(
    ask: Ask, schedule: Ask, look: Ask, suite_file: str, system_engine: Engine
) -> None:
    promotion = {"alias": "prod", "suites": [{"file": suite_file, "grader": GRADER}]}
    made = schedule(training=TRAINING | {"promotion": promotion})
    tick = ask("post", f"/schedules/{made['id']}/run")
    job = ask("get", f"/fine_tuning/jobs/{tick['job']}")
    assert ask("get", f"/promotions/{job['promotion']}")["status"] == "waiting"


def test_a_full_queue_refuses_a_run_and_not_the_schedule(
    ask: Ask, schedule: Ask, system_engine: Engine, caller: Caller
) -> None:
    with system_session(system_engine) as session:
        session.execute(
            text("INSERT INTO quotas (id, org_id, max_queued) VALUES (gen_random_uuid(), :org, 0)"),
            {"org": caller.org_id},
        )
    made = schedule()
    tick = ask("post", f"/schedules/{made['id']}/run")
    assert tick["outcome"] == "refused" and "quota" in tick["message"]
    with system_session(system_engine) as session:
        assert session.scalars(select(Schedule.failures)).one() == 1


# Regressions


def test_a_version_that_an_evaluation_finds_worse_than_its_base_is_trained_anew_once(
    ask: Ask,
    schedule: Ask,
    look: Ask,
    publish_version: Ask,
    suite_file: str,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    made = schedule(cron=None, on_regression="main.summer@prod")
    assert made["on_regression"] == "main.summer@prod"
    ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    assert look() == 0, "nothing is measured yet"
    run(system_engine, store, lambda spec: right_in(30 if spec.z is None else 5))
    assert look() == 1 and look() == 0
    (tick,) = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert tick["outcome"] == "fired" and tick["tick"].startswith("regression:")


def test_a_version_that_is_not_worse_is_left_alone(
    ask: Ask,
    schedule: Ask,
    look: Ask,
    publish_version: Ask,
    suite_file: str,
    system_engine: Engine,
    store: DirectoryStore,
) -> None:
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    schedule(cron=None, on_regression="main.summer@prod")
    ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    run(system_engine, store, lambda spec: right_in(20 if spec.z is None else 19))
    assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["no_regression"]


def test_what_is_not_watched_is_refused(schedule: Ask) -> None:
    with pytest.raises(openai.NotFoundError, match=r"main\.none"):
        schedule(on_regression="main.none@prod")


# Feedback


@pytest.fixture
def give(client: Client) -> Ask:
    """Give so much feedback on a version."""

    def post(model: str, count: int = 1, by: Client = client) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "1 + 1 ="}], "completion": "3", "score": -1}
        for _ in range(count):
            by.post("/feedback", cast_to=object, body=body)

    return post


def test_a_schedule_fires_when_so_much_feedback_has_come_and_again_when_so_much_more_has(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    first, second = publish_version(), publish_version()
    made = schedule(cron=None, on_feedback=3, overlap="allow")
    give(first, 2)
    assert look() == 0
    assert ask("get", f"/schedules/{made['id']}")["new_feedback"] == 2
    give(second)
    assert look() == 1 and look() == 0
    assert ask("get", f"/schedules/{made['id']}")["new_feedback"] == 0
    give(second, 4)
    assert look() == 1 and look() == 0
    give(second, 2)
    assert look() == 0
    rows = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert [(row["outcome"], row["tick"]) for row in rows] == [
        ("fired", "feedback:summer:7"),
        ("fired", "feedback:summer:3"),
    ]


def test_schedulers_at_the_same_time_fire_once_for_the_same_feedback(
    schedule: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    schedule(cron=None, on_feedback=2, overlap="allow")
    give(publish_version(), 2)

    def look_once(_number: int) -> bool:
        with system_session(system_engine) as session:
            return process_next_due(session)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(look_once, range(12))) == 1
    assert outcomes(system_engine) == ["fired"]


def test_a_scheduler_that_dies_before_it_commits_loses_no_feedback(
    schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    schedule(cron=None, on_feedback=1)
    give(publish_version())
    with pytest.raises(ZeroDivisionError), system_session(system_engine) as session:
        assert process_next_due(session)
        raise ZeroDivisionError
    assert outcomes(system_engine) == []
    assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["fired"]


def test_feedback_on_what_a_schedule_does_not_train_does_not_count(
    schedule: Ask,
    look: Ask,
    publish_version: Ask,
    give: Ask,
    make_caller: Callable[..., Caller],
    make_key: Callable[..., str],
    open_client: Callable[..., Client],
) -> None:
    schedule(cron=None, on_feedback=1)
    give(publish_version("winter"))
    for names in (("globex", "main"), ("acme", "other")):
        publish_version(owner=make_caller(*names))
        give(f"{names[1]}.summer@v1", by=open_client(make_key(*names)))
    assert look() == 0
    give(publish_version())
    assert look() == 1


def test_what_has_come_before_a_schedule_was_made_or_resumed_does_not_count(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask
) -> None:
    version = publish_version()
    give(version, 5)
    made = schedule(cron=None, on_feedback=2)
    assert made["new_feedback"] == 0 and look() == 0
    ask("post", f"/schedules/{made['id']}/pause")
    give(version, 2)
    assert look() == 0
    assert ask("post", f"/schedules/{made['id']}/resume")["new_feedback"] == 0
    give(version)
    assert look() == 0
    give(version)
    assert look() == 1


def test_an_expert_that_is_yet_to_be_trained_has_no_feedback(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask
) -> None:
    made = schedule(cron=None, on_feedback=1, training=TRAINING | {"suffix": "Yet to come"})
    assert (made["on_feedback"], made["new_feedback"]) == (1, 0)
    assert look() == 0 and ask("get", "/experts")["data"] == []
    give(publish_version("yet-to-come"))
    assert look() == 1


def test_a_training_without_a_suffix_is_of_the_expert_that_its_file_names(
    schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    schedule(cron=None, on_feedback=1, training=TRAINING | {"suffix": None})
    give(publish_version("suite"))
    assert look() == 1
    assert trainings(system_engine)[-1].spec["expert"] == "suite"


def test_a_schedule_that_cannot_know_its_expert_is_refused(
    schedule: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    make_file(caller, b"no json\n", name="broken.jsonl")
    with pytest.raises(openai.BadRequestError) as caught:
        schedule(dataset="broken", cron=None, on_feedback=1, training=TRAINING | {"suffix": None})
    assert caught.value.param == "training.suffix"


def test_a_schedule_that_turns_to_another_expert_fires_for_its_feedback_though_the_counts_are_alike(
    ask: Ask, schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    made = schedule(cron=None, on_feedback=1, overlap="allow")
    give(publish_version())
    assert look() == 1
    body = {"name": "weekly", "dataset": "suite", "training": TRAINING | {"suffix": "winter"}, "overlap": "allow"}
    ask("put", f"/schedules/{made['id']}", body | {"on_feedback": 1})
    give(publish_version("winter"))
    assert look() == 1
    assert outcomes(system_engine) == ["fired", "fired"]


def test_enough_feedback_while_a_job_runs_is_left_to_the_policy(
    schedule: Ask, look: Ask, publish_version: Ask, give: Ask, system_engine: Engine
) -> None:
    version = publish_version()
    schedule(cron=None, on_feedback=2)
    for _ in range(2):
        give(version, 2)
        assert look() == 1 and look() == 0
    assert outcomes(system_engine) == ["fired", "skipped_overlap"]
