"""The clock of schedules, and what became of their ticks."""

from datetime import datetime, timedelta

from claims import admit_queued, claim_one
from sqlalchemy import Engine, func, select, text
from suites import METHOD

from zhub.database.sessions import system_session
from zhub.models import Job, ScheduleTick
from zhub.queue import attempts
from zhub.queue.attempts import Failure

TRAINING = {
    "model": "tiny",
    "method": METHOD,
    "suffix": "summer",
}


def make_due(engine: Engine, ago: timedelta = timedelta(0)) -> datetime:
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


def end_trainings(engine: Engine, *, well: bool) -> None:
    """Let every training end."""
    with system_session(engine) as session:
        admit_queued(session)
        while claim := claim_one(session, "train"):
            if well:
                attempts.succeed(session, claim.job_id, claim.fence)
            else:
                attempts.fail(session, claim.job_id, claim.fence, Failure("x", "It broke."))
