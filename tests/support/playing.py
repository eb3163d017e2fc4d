"""A stand-in for training, and an actor of Ray's that runs it: workers that begin, go on and end as their spec says."""

import os
import threading
import time
from pathlib import Path
from typing import Any

from suites import manifest_of

from zhub.errors import PromptTooLongError
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.attempts.worker import Worker
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.worker.actors import LightActor


def play(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
    """Do what the spec says: succeed, fail, or go on until told to stop or until a file is there; or die then."""
    context.emit("info", "begun", {"pid": os.getpid()})
    if attempt.spec["do"] == "fail":
        raise PromptTooLongError(3, 900, 512)
    if attempt.spec["do"] in ("go on", "die"):
        while not Path(attempt.spec["end"]).exists():
            context.raise_if_stopped()
            time.sleep(0.002)
    if attempt.spec["do"] == "die":
        time.sleep(0.2)  # until the call that began it has been answered
        os._exit(137)  # as after a kill by the system for want of memory
    context.emit("info", "done")
    manifest = manifest_of(attempt.key.job_id, fence=attempt.key.fence).model_dump(mode="json")
    return {"manifest": manifest, "key_prefix": attempt.key_prefix, "trained_tokens": 1}


class PlayingActor(LightActor):
    """An actor like those of the pools."""

    def __init__(self, _device: str | None, _log_format: str, _flavour: Flavour) -> None:
        self._worker = Worker(play, exit_process=os._exit)


class StuckActor(PlayingActor):
    """A worker that never comes up."""

    def __init__(self, *_: Any) -> None:
        threading.Event().wait()
