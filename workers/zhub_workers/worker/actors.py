"""The classes of the Ray actors: each only forwards to a ``Worker``.

Each imports its runner when it is made, inside its own process: the agent, which also imports this module, must not
pay for torch, and neither must the worker that validates datasets.
"""

import os

from zhub.process.logs import LogFormat, configure_logging
from zhub.process.tracing import start_tracing
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt
from zhub_workers.attempts.worker import Worker
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.compute.cores import sleep_while_waiting


class LightActor:
    """Runs what needs no torch."""

    def __init__(self, _device: str | None, log_format: LogFormat, _flavour: Flavour) -> None:
        configure_logging(log_format)
        start_tracing("zhub-worker")
        # Here, because the agent imports this module, and needs no runner.
        from zhub_workers.worker import light_runner

        self._worker = Worker(light_runner.run, exit_process=os._exit)

    def start(self, attempt: Attempt, lease_s: float) -> None:
        self._worker.start(attempt, lease_s)

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus | None:
        return self._worker.poll(key, after_seq, lease_s)

    def request_stop(self, key: AttemptKey) -> None:
        self._worker.request_stop(key)

    def forget(self, key: AttemptKey) -> bool:
        return self._worker.forget(key)

    def held(self) -> list[HeldAttempt]:
        return self._worker.held()


class TorchActor(LightActor):
    """Runs what needs torch, on one device."""

    def __init__(self, device: str | None, log_format: LogFormat, flavour: Flavour) -> None:
        configure_logging(log_format)
        start_tracing("zhub-worker")
        sleep_while_waiting()
        # Here, because it imports torch, which this module must not.
        from zhub_workers.worker.torch_runner import TorchRunner

        self._worker = Worker(TorchRunner(device, flavour), exit_process=os._exit)
