"""What happens between the reading of rewards, their comparison, and the record of what was found."""

from collections.abc import Callable
from typing import Any

import pytest
from promoting import z
from schedule_ticks import outcomes, trainings
from sqlalchemy import Engine
from suites import GRADER, right_in, run

from zhub.database.sessions import system_session
from zhub.scheduler import follow_regressions
from zhub.schedules import regressions
from zhub.schedules.regressions import Watched
from zhub.storage.directory import DirectoryStore

Ask = Callable[..., Any]


@pytest.fixture
def watched(
    ask: Ask, schedule: Ask, publish_version: Ask, suite_file: str, system_engine: Engine, store: DirectoryStore
) -> Watched:
    """A schedule on an alias whose version is worse than its base, as a scheduler has read it."""
    name = publish_version()
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    schedule(cron=None, on_regression="main.summer@prod")
    ask("post", "/evaluations", {"model": name, "file": suite_file, "grader": GRADER})
    run(system_engine, store, lambda spec: right_in(30 if spec.z is None else 5))
    with system_session(system_engine) as session:
        found = regressions.next_watched(session)
    assert found is not None
    return found


def test_a_regression_that_two_schedulers_found_fires_once(watched: Watched, system_engine: Engine) -> None:
    verdicts = regressions.verdicts_of(watched)
    for _ in range(2):
        with system_session(system_engine) as session:
            regressions.record(session, watched, verdicts)
    assert outcomes(system_engine) == ["fired"]
    assert len(trainings(system_engine)) == 2  # that of the version itself, and the one that was fired
    assert not follow_regressions(system_engine)


def test_a_version_that_the_alias_has_left_meanwhile_fires_nothing(
    ask: Ask, watched: Watched, publish_version: Ask, system_engine: Engine
) -> None:
    verdicts = regressions.verdicts_of(watched)
    ask("put", "/experts/main.summer/aliases/prod", {"version": publish_version(**z("ab"))})
    with system_session(system_engine) as session:
        regressions.record(session, watched, verdicts)
    assert outcomes(system_engine) == []


@pytest.mark.parametrize("change", ["pause", "delete"])
def test_a_schedule_that_was_stopped_meanwhile_does_not_fire(
    ask: Ask, watched: Watched, system_engine: Engine, change: str
) -> None:
    verdicts = regressions.verdicts_of(watched)
    path = f"/schedules/sched-{watched.schedule_id.hex}"
    ask("post", f"{path}/pause") if change == "pause" else ask("delete", path)
    with system_session(system_engine) as session:
        regressions.record(session, watched, verdicts)
    assert outcomes(system_engine) == []


def test_a_schedule_that_another_scheduler_records_is_not_waited_for(watched: Watched, system_engine: Engine) -> None:
    verdicts = regressions.verdicts_of(watched)
    with system_session(system_engine) as one, system_session(system_engine) as other:
        regressions.record(one, watched, verdicts)
        regressions.record(other, watched, verdicts)
        assert regressions.next_watched(other) is None
    assert outcomes(system_engine) == ["fired"]


def test_a_schedule_whose_evaluations_cannot_be_compared_is_paused_and_says_so(
    ask: Ask, watched: Watched, system_engine: Engine
) -> None:
    with system_session(system_engine) as session:
        regressions.record(session, watched, None)
    found = ask("get", f"/schedules/sched-{watched.schedule_id.hex}")
    assert "failed to compare" in found["paused_because"]
    assert not follow_regressions(system_engine)


def test_a_release_on_the_same_rows_is_not_taken_for_the_base(
    ask: Ask, schedule: Ask, publish_version: Ask, suite_file: str, system_engine: Engine, store: DirectoryStore
) -> None:
    name = publish_version()
    release = {"name": "support", "strategy": "mixture", "experts": [{"model": name}]}
    ask("put", "/experts/main.summer/aliases/prod", {"version": name})
    schedule(cron=None, on_regression="main.summer@prod")
    for model in (name, ask("post", "/releases", release)["id"]):
        ask("post", "/evaluations", {"model": model, "file": suite_file, "grader": GRADER})
    run(system_engine, store, lambda spec: right_in(20 if spec.release is None else 40))
    while follow_regressions(system_engine):
        pass
    assert outcomes(system_engine) == ["no_regression"]
