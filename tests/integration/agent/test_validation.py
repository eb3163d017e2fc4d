"""The validation of a dataset by an agent, from the file to its status."""

import io
import uuid
from collections.abc import Callable

from agent_rig import AgentRig, Training, thread_launcher
from sqlalchemy import select
from suites import sums

from zhub.database.sessions import system_session
from zhub.models import JobEvent

ROWS = sums(20)


def test_a_dataset_is_validated(rig: AgentRig, send: Callable[[bytes], uuid.UUID], training: Training) -> None:
    version_id = send(ROWS)
    rig.drive(rig.agent(thread_launcher(training)), rig.job_of_file(version_id), "succeeded")
    version = rig.file(version_id)
    assert version.status == "processed" and version.validation is not None and version.validation["rows"] == 20


def test_a_validation_tells_its_story_in_events(
    rig: AgentRig, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    job_id = rig.job_of_file(send(ROWS))
    rig.drive(rig.agent(thread_launcher(training)), job_id, "succeeded")
    with system_session(rig.engine) as session:
        told = session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.position))
        assert list(told) == [
            "Validation of sums.jsonl enqueued.",
            "The job is admitted.",
            "Attempt 1 started.",
            "The job is running.",
            "The job has succeeded.",
        ]


def test_what_is_wrong_with_a_dataset_is_a_result_and_no_failure(
    rig: AgentRig, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    version_id = send(b"nonsense\n")
    rig.drive(rig.agent(thread_launcher(training)), rig.job_of_file(version_id), "succeeded")
    assert rig.file(version_id).status == "error"


def test_bytes_that_are_not_those_uploaded_are_never_validated(
    rig: AgentRig, send: Callable[[bytes], uuid.UUID], training: Training
) -> None:
    version_id = send(ROWS)
    rig.store.put(rig.file(version_id).key, io.BytesIO(b"tampered"))
    failed = rig.drive(rig.agent(thread_launcher(training)), rig.job_of_file(version_id), "failed")
    assert failed.error is not None and failed.error["code"] == "digest_mismatch"
    assert rig.file(version_id).status == "error"
