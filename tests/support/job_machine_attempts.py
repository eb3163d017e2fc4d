"""What attempts do in the jobs' state machine: also those that have long lost their job."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import multiple, precondition, rule
from job_machine_model import Model
from job_machine_world import AGENTS, KINDS, Attempt, World, attempts
from suites import manifest_of

from zhub.database.sessions import system_session
from zhub.errors import LeaseLostError
from zhub.kinds import outcomes, table
from zhub.queue import attempts as job_attempts
from zhub.queue import checkpoints, job_events
from zhub.queue import claims as job_claims
from zhub.registry.publish import publish
from zhub.storage.keys import checkpoints_prefix


class AttemptMoves(World):
    """Claims, and what an attempt then writes, which is refused unless it owns its job."""

    @precondition(lambda self: self.any_in("admitted"))
    @rule(target=attempts, agent=st.sampled_from(AGENTS), kinds=st.sampled_from([KINDS, ["train"], ["validate"]]))
    def claim(self, agent: uuid.UUID, kinds: list[str]) -> Any:
        with system_session(self.engine) as session:
            claims = job_claims.claim_up_to(
                session, 1, agent, "default", kinds, light=table.names().light, lease_s=3600
            )
        ready = [m for m in self.models if m.state == "admitted" and m.desired == "run" and m.kind in kinds]
        assert bool(claims) == bool(ready)
        if not claims:
            return multiple()
        (claim,) = claims
        (model,) = [m for m in ready if m.id == claim.job_id]
        model.state, model.fence, model.expired = "starting", model.fence + 1, False
        assert claim.fence == model.fence
        assert (claim.checkpoint and claim.checkpoint["step"]) == (model.checkpoints[-1] if model.checkpoints else None)
        return self.models.index(model), model.fence

    @contextlib.contextmanager
    def by_the_owner_only(self, attempt: Attempt, *, unless_cancelled: bool = False) -> Iterator[Model]:
        """The model of an attempt's job; the write inside has to be refused unless the attempt owns the job."""
        model = self.models[attempt[0]]
        if model.owns(attempt[1]) and not (unless_cancelled and model.desired == "cancel"):
            yield model
        else:
            with pytest.raises(LeaseLostError):
                yield model

    @rule(attempt=attempts)
    def heartbeat(self, attempt: Attempt) -> None:
        with self.by_the_owner_only(attempt) as model:
            event = job_events.Event(1, "info", "message", "Trains.")
            with system_session(self.engine) as session:
                wanted = job_attempts.heartbeat(
                    session, model.id, attempt[1], lease_s=3600, progressed=True, events=[event]
                )
            assert wanted == model.desired
            model.beat()

    @rule(attempt=attempts, again=st.booleans())
    def checkpoint(self, attempt: Attempt, again: bool) -> None:
        """The attempt reports a checkpoint, or, after a poll whose answer was lost, the last one again."""
        with self.by_the_owner_only(attempt) as model:
            step = max(1, model.reported) if again else model.reported + 1
            reports = self.reports.setdefault(attempt, [])
            if step not in reports:
                reports.append(step)
            first = job_events.Event(1, "info", "message", "Trains.")
            seq = reports.index(step) + 2
            event = job_events.Event(seq, "info", "message", "Checkpoint.", self._report_of(model.id, step))
            with system_session(self.engine) as session:
                job_attempts.heartbeat(
                    session, model.id, attempt[1], lease_s=3600, progressed=True, events=[first, event]
                )
            model.beat()
            if step > model.reported:
                model.reported = step
                model.checkpoints = [*model.checkpoints, step][-checkpoints.KEEP_CHECKPOINTS :]

    def _report_of(self, job_id: uuid.UUID, step: int) -> dict[str, Any]:
        prefix = f"{checkpoints_prefix(self.owner['org_id'], job_id)}/{step:06d}"
        z = {"name": "z.safetensors", "size_bytes": 1, "sha256": "0" * 64}
        what = {"step": step, "key_prefix": prefix, "digest": "0" * 64, "size_bytes": 1}
        return {"type": "checkpoint", "z": z, "metrics": {}, **what}

    @rule(attempt=attempts)
    def publish(self, attempt: Attempt) -> None:
        with self.by_the_owner_only(attempt, unless_cancelled=True) as model:
            with system_session(self.engine) as session:
                if model.kind == "train":
                    manifest = manifest_of(model.id, fence=attempt[1])
                    prefix = f"t/{self.owner['org_id'].hex}/jobs/{model.id.hex}/attempts/{attempt[1]}"
                    publish(session, model.id, attempt[1], manifest, prefix, 1)
                else:
                    job = job_attempts.succeed(session, model.id, attempt[1])
                    job_events.add(session, job.org_id, job.id, "The job has succeeded.")
            model.state, model.published = "succeeded", model.kind == "train"

    @rule(attempt=attempts, infra=st.booleans(), retryable=st.booleans())
    def fail(self, attempt: Attempt, infra: bool, retryable: bool) -> None:
        with self.by_the_owner_only(attempt) as model:
            failure = job_attempts.Failure("x", "It failed.", retryable=retryable)
            with system_session(self.engine) as session:
                outcome = "failed_infra" if infra else "failed_user"
                state = outcomes.record_failure(session, model.id, attempt[1], failure, outcome=outcome)
            model.release(infra, retryable)
            assert state == model.state

    @rule(attempt=attempts)
    def stop(self, attempt: Attempt) -> None:
        with self.by_the_owner_only(attempt) as model:
            with system_session(self.engine) as session:
                state = outcomes.record_stop(session, model.id, attempt[1])
            if model.desired == "run" and model.state != "stopping":  # nobody had asked it to
                model.release(infra=True, retryable=True)
            else:
                model.state = {"cancel": "cancelled", "pause": "paused"}.get(model.desired, "queued")
                if model.desired == "preempt":
                    model.desired = "run"
            assert state == model.state
