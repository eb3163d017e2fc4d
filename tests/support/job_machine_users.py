"""The changes that users request in the jobs' state machine."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from job_machine_model import Model
from job_machine_world import World, numbers
from sqlalchemy import select

from zhub import states
from zhub.database.sessions import system_session
from zhub.errors import ConflictError
from zhub.kinds import redrive
from zhub.models import Checkpoint
from zhub.queue import checkpoints, jobs
from zhub.queue.desired import request_cancel, request_pause, request_resume


class UserMoves(World):
    """Cancellations, pauses, resumptions, redrives, and checkpoints that are deleted and swept."""

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        model = self.models[number]
        refused = pytest.raises(ConflictError) if model.state in ("succeeded", "failed") else contextlib.nullcontext()
        with refused, system_session(self.engine) as session:
            request_cancel(session, model.id)
        if not model.ended or (model.state == "cancelled" and model.desired == "redrive"):
            model.desired = "cancel"

    @rule(number=numbers)
    def pause(self, number: int) -> None:
        with self._unless_ending(number) as model, system_session(self.engine) as session:
            request_pause(session, model.id)
            model.desired = "pause"

    @rule(number=numbers)
    def resume(self, number: int) -> None:
        with self._unless_ending(number) as model, system_session(self.engine) as session:
            request_resume(session, model.id)
            if model.desired == "pause":
                model.desired = "run"

    @contextlib.contextmanager
    def _unless_ending(self, number: int) -> Iterator[Model]:
        """The model of a job; the request inside must be refused if the job has ended or will be cancelled."""
        model = self.models[number]
        if model.state in states.TERMINAL or model.desired == "cancel":
            with pytest.raises(ConflictError):
                yield model
        else:
            yield model

    @precondition(lambda self: any(model.dead for model in self.models))
    @rule(number=numbers)
    def ask_for_redrive(self, number: int) -> None:
        model = self.models[number]
        refused = contextlib.nullcontext() if model.dead else pytest.raises(ConflictError)
        with refused, system_session(self.engine) as session:
            redrive.request(session, jobs.get_job(session, model.id), by="test")
        if model.dead:
            model.desired = "redrive"

    @precondition(lambda self: any(model.checkpoints for model in self.models))
    @rule(number=numbers, position=st.integers(-3, -1))
    def delete_checkpoint(self, number: int, position: int) -> None:
        model = self.models[number]
        if len(model.checkpoints) < -position:
            return
        step = model.checkpoints[position]
        kept = position == -1 and model.state not in states.TERMINAL
        refused = pytest.raises(ConflictError) if kept else contextlib.nullcontext()
        with refused, system_session(self.engine) as session:
            checkpoint_id = session.scalars(
                select(Checkpoint.id).where(Checkpoint.job_id == model.id, Checkpoint.step == step)
            ).one()
            checkpoints.delete_checkpoint(session, jobs.get_job(session, model.id), checkpoint_id)
        if not kept:
            model.checkpoints.remove(step)

    @precondition(lambda self: any(model.checkpoints for model in self.models))
    @rule()
    def sweep(self) -> None:
        checkpoints.sweep(self.engine, self.store, after=timedelta())
