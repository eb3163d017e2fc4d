"""Workers as processes of their own: like Ray's detached actors they outlive their agent, which finds them by name.

A folder is the cluster: each worker listens at a unix socket in it, whose name is the worker's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

from zhub.states import POOLS
from zhub_workers.agent.launcher import WorkerLostError, WorkerSilentError, choose_worker, holder_of, open_packs
from zhub_workers.attempts.attempt import Attempt, AttemptKey, AttemptStatus, HeldAttempt

CALL_TIMEOUT_S = 2.0
JOBS_PER_WORKER = 2
PROGRAM = Path(__file__).with_name("worker_program.py")


class ProcessLauncher:
    """One worker for each pool below ``folder``, whoever started it. They end with the process ``owner``."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._folder = folder
        self._owner = owner
        self._starting: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._holds: dict[str, dict[AttemptKey, HeldAttempt]] = {}
        for path in folder.glob("zhub-*.pid"):
            self._adopt(path.stem)
        self.restore_pool_sizes()

    def restore_pool_sizes(self) -> None:
        for pool in POOLS:
            if not any(_pool(name) == pool for name in (*self._holds, *self._starting)):
                name = f"zhub-{pool}-{uuid.uuid4().hex[:6]}"
                argv = [sys.executable, str(PROGRAM), str(self._folder / name), pool, str(self._owner)]
                self._starting[name] = subprocess.Popen(argv, start_new_session=True)
        for name, process in list(self._starting.items()):
            if (self._folder / f"{name}.pid").exists():
                self._holds[name] = {}
            elif process.poll() is None:
                continue
            self._started.append(self._starting.pop(name))
        self._started = [process for process in self._started if process.poll() is None]

    def clean_up(self) -> None:
        return

    def slots(self) -> int:
        return 1

    def free(self, pool: str) -> int:
        return sum(not held for held in self._held(pool).values())

    def packs(self, pool: str) -> set[str]:
        held = (held.values() for held in self._held(pool).values())
        return open_packs(held, jobs_per_worker=JOBS_PER_WORKER)

    def start(self, pool: str, attempt: Attempt, lease_s: float) -> str:
        name = self.running().get(attempt.key) or self._choose(pool, attempt.pack_key)
        self._holds[name][attempt.key] = HeldAttempt(attempt.key, attempt.pack_key, attempt.workers)
        try:
            self._call(name, "start", attempt, lease_s)
        except WorkerLostError:
            if name in self._holds:
                del self._holds[name][attempt.key]
            raise
        return name

    def poll(self, key: AttemptKey, after_seq: int, lease_s: float) -> AttemptStatus:
        name = holder_of(key, self.running())
        status: AttemptStatus | None = self._call(name, "poll", key, after_seq, lease_s)
        if status is None:
            del self._holds[name][key]
            raise WorkerLostError(f"no worker holds attempt {key}")
        return status

    def request_stop(self, key: AttemptKey) -> None:
        self._call(holder_of(key, self.running()), "request_stop", key)

    def kill(self, key: AttemptKey) -> None:
        name = self.running().get(key)
        if name is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((self._folder / f"{name}.pid").read_text()), signal.SIGKILL)
            self._drop(name)

    def forget(self, key: AttemptKey) -> None:
        name = holder_of(key, self.running())
        if self._call(name, "forget", key):
            del self._holds[name][key]

    def running(self) -> dict[AttemptKey, str]:
        return {key: name for name, held in self._holds.items() for key in held}

    def leaving(self) -> set[AttemptKey]:
        return set()

    def died_on(self, key: AttemptKey) -> str | None:
        return None

    def nodes(self) -> set[str]:
        return set()

    def _adopt(self, name: str) -> None:
        self._holds[name] = {}
        try:
            self._holds[name] = {one.key: one for one in self._call(name, "held")}
        except WorkerLostError:
            return
        except WorkerSilentError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((self._folder / f"{name}.pid").read_text()), signal.SIGKILL)
            self._drop(name)

    def _held(self, pool: str) -> dict[str, dict[AttemptKey, HeldAttempt]]:
        return {name: held for name, held in self._holds.items() if _pool(name) == pool}

    def _choose(self, pool: str, pack_key: str | None) -> str:
        held = {name: held.values() for name, held in self._held(pool).items()}
        return choose_worker(pool, held, pack_key, jobs_per_worker=JOBS_PER_WORKER)

    def _call(self, name: str, method: str, *arguments: Any) -> Any:
        try:
            return call(self._folder / name, method, *arguments)
        except TimeoutError as exc:
            raise WorkerSilentError(f"worker {name} did not answer within {CALL_TIMEOUT_S:.0f} s") from exc
        except (OSError, EOFError) as exc:
            self._drop(name)
            raise WorkerLostError(f"worker {name} died") from exc
        except RuntimeError as exc:
            raise WorkerLostError(f"worker {name} refused to {method}") from exc

    def _drop(self, name: str) -> None:
        self._holds.pop(name, None)
        for path in (self._folder / name, self._folder / f"{name}.pid"):
            path.unlink(missing_ok=True)


def call(path: Path, method: str, *arguments: Any) -> Any:
    """Have the worker that listens at ``path`` do something.

    Raises:
        OSError, EOFError: the worker is gone.
        TimeoutError: it does not answer.
        RuntimeError: it refuses.
    """
    with Client(str(path)) as connection:
        connection.send((method, arguments))
        if not connection.poll(CALL_TIMEOUT_S):
            raise TimeoutError(path)
        answer = connection.recv()
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def _pool(name: str) -> str:
    return name.split("-")[1]
