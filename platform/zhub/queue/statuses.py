"""The status that users are shown of a job: the dialect's word for its state and its requested change."""

from typing import Final

from sqlalchemy import ColumnElement, and_, case

from zhub import states
from zhub.models import Job

STATUSES: Final = ("queued", "running", "paused", "succeeded", "failed", "cancelled")

_WITHOUT_ATTEMPT: Final = (states.WAITING, states.QUEUED, states.ADMITTED, states.PAUSED)
_DEAD: Final = (states.FAILED, states.CANCELLED)
_STATES: Final[dict[str, tuple[str, ...]]] = {
    "queued": (*_WITHOUT_ATTEMPT, *_DEAD),  # the dead ones where a redrive is requested
    "running": states.ACTIVE,
    "paused": _WITHOUT_ATTEMPT,
    "succeeded": (states.SUCCEEDED,),
    "failed": (states.FAILED,),
    "cancelled": (*_WITHOUT_ATTEMPT, states.CANCELLED),
}


def status_of(job: Job) -> str:
    """The status of a job. A request about a job that no worker holds is shown as already fulfilled."""
    if job.state in _WITHOUT_ATTEMPT:
        return {"cancel": "cancelled", "pause": "paused"}.get(job.desired, "queued")
    if job.state in states.ACTIVE:
        return "running"
    return "queued" if job.state in _DEAD and job.desired == "redrive" else job.state


def has_status(status: str) -> ColumnElement[bool]:
    """The condition that ``status_of`` a job is this one of ``STATUSES``."""
    shown = case(
        (
            Job.state.in_(_WITHOUT_ATTEMPT),
            case((Job.desired == "cancel", "cancelled"), (Job.desired == "pause", "paused"), else_="queued"),
        ),
        (Job.state.in_(states.ACTIVE), "running"),
        (and_(Job.state.in_(_DEAD), Job.desired == "redrive"), "queued"),
        else_=Job.state,
    )
    # The states by themselves too: an index is about those that failed.
    return and_(Job.state.in_(_STATES[status]), shown == status)
