"""Ticks: each has one outcome, whoever looks and however often, and repeated failure pauses its schedule."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from schedule_ticks import end_trainings, make_due, outcomes, trainings
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from suites import ROWS

from zhub.database.sessions import system_session
from zhub.models import ScheduleTick
from zhub.queue.desired import apply_requested_changes
from zhub.schedules.firing import process_next_due
from zhub.tenancy.keys import Caller

Ask = Callable[..., Any]


def test_a_tick_trains_on_the_newest_version_of_the_dataset(
    ask: Ask, schedule: Ask, look: Ask, make_file: Ask, caller: Caller, system_engine: Engine
) -> None:
    made = schedule()
    newest = make_file(caller, ROWS + ROWS.replace(b"+ 1", b"+ 2"))
    tick = make_due(system_engine)
    assert look() == 1
    (row,) = ask("get", f"/schedules/{made['id']}/ticks")["data"]
    assert (row["outcome"], row["tick"]) == ("fired", tick.strftime("%Y-%m-%dT%H:%M:%SZ"))
    job = ask("get", f"/fine_tuning/jobs/{row['job']}")
    assert (job["training_file"], job["suffix"]) == (newest, "summer")
    assert job["metadata"] == {"schedule": "weekly", "tick": row["tick"]}


def test_schedulers_at_the_same_time_fire_a_tick_once(schedule: Ask, system_engine: Engine) -> None:
    schedule()
    make_due(system_engine)

    def look_once(_number: int) -> bool:
        with system_session(system_engine) as session:
            return process_next_due(session)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(look_once, range(6))) >= 1
    assert outcomes(system_engine) == ["fired"] and len(trainings(system_engine)) == 1


def test_a_schedule_that_another_scheduler_looks_after_is_not_waited_for(schedule: Ask, system_engine: Engine) -> None:
    schedule()
    make_due(system_engine)
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
    make_due(system_engine)
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
    make_due(system_engine)
    with pytest.raises(ZeroDivisionError), system_session(system_engine) as session:
        assert process_next_due(session)
        raise ZeroDivisionError
    assert outcomes(system_engine) == []
    look()
    look()
    assert outcomes(system_engine) == ["fired"]


def test_missed_ticks_have_rows_and_the_newest_fires(schedule: Ask, look: Ask, system_engine: Engine) -> None:
    schedule()
    make_due(system_engine, timedelta(minutes=5))
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
    make_due(system_engine)
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
    end_trainings(system_engine, well=True)
    look()
    assert outcomes(system_engine) == ["fired", "fired", "skipped_overlap"]
    assert len(trainings(system_engine)) == 2


def test_a_refused_run_says_why(ask: Ask, schedule: Ask, look: Ask, system_engine: Engine) -> None:
    made = schedule()
    with system_session(system_engine) as session:
        # The API keeps the last version of a schedule's dataset; an earlier release did not.
        session.execute(text("UPDATE dataset_versions SET deleted_at = now()"))
    make_due(system_engine)
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
        end_trainings(system_engine, well=False)
        look()
        assert ask("get", path)["failures"] == failures
    found = ask("get", path)
    assert (found["status"], found["next_runs"]) == ("paused", [])
    assert "2 runs in a row failed, the last one: It broke." in found["paused_because"]
    make_due(system_engine)
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
    end_trainings(system_engine, well=False)
    tick = ask("post", f"{path}/run")
    ask("post", f"/fine_tuning/jobs/{tick['job']}/cancel")
    with system_session(system_engine) as session:
        apply_requested_changes(session)
    look()
    assert ask("get", path)["failures"] == 1
    ask("post", f"{path}/run")
    end_trainings(system_engine, well=True)
    look()
    assert ask("get", path)["failures"] == 0


def test_ticks_of_a_pause_are_not_caught_up(ask: Ask, schedule: Ask, look: Ask, system_engine: Engine) -> None:
    made = schedule(cron="* * * * *")
    ask("post", f"/schedules/{made['id']}/pause")
    make_due(system_engine, timedelta(minutes=30))
    assert look() == 0
    ask("post", f"/schedules/{made['id']}/resume")
    assert look() == 0 and outcomes(system_engine) == []


def test_a_schedule_that_breaks_is_paused_and_stands_in_no_others_way(
    ask: Ask, schedule: Ask, look: Ask, system_engine: Engine
) -> None:
    broken, sound = schedule(name="broken"), schedule(name="sound")
    make_due(system_engine)
    with system_session(system_engine) as session:
        session.execute(text("UPDATE schedules SET timezone = 'Nowhere' WHERE name = 'broken'"))
    look()
    assert "zhub failed to fire it" in ask("get", f"/schedules/{broken['id']}")["paused_because"]
    assert [tick["outcome"] for tick in ask("get", f"/schedules/{sound['id']}/ticks")["data"]] == ["fired"]
