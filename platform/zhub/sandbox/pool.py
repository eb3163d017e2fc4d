"""A pool of zygotes that runs many short programs, each confined and each watched from outside."""

import contextlib
import json
import math
import os
import platform
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from zhub.errors import SandboxUnavailableError
from zhub.sandbox import landlock, self_test
from zhub.sandbox.evaluation import PRINTED_BYTES
from zhub.sandbox.program import Limits, Outcome, Program, Raised, Unreadable, Value
from zhub.sandbox.seccomp import ARCHITECTURES
from zhub.sandbox.values import UnreadableValueError, decode
from zhub.sandbox.zygote import CONFINED, END, JOB_LENGTH, READY, REPLY, REQUEST, UNCONFINED

START_TIMEOUT_S = 20.0
REPLY_TIMEOUT_S = 10.0
# `zhub` and `zhub.sandbox` as bare namespaces: their own __init__ would import all of zhub.
BOOT = """
import sys, types
for name, path in (("zhub", sys.argv[1]), ("zhub.sandbox", sys.argv[1] + "/sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from zhub.sandbox import zygote
zygote.main()
"""
# Isolated from the user's and the environment's Python, except that the hash seed is fixed: a set's order, and with
# it a reward, is the same in every run.
INTERPRETER = ("-P", "-s", "-S", "-c", BOOT)
ENVIRONMENT = {"PYTHONHASHSEED": "0"}


class Sandbox:
    """Runs untrusted programs, ``workers`` at a time. Thread-safe; a context manager.

    Each zygote is made when it is first needed and replaced when it dies; each attacks its own confinement before it
    runs anything else.

    Raises:
        SandboxUnavailableError: this machine cannot confine programs; the message says what is missing.
    """

    def __init__(self, workers: int = 2) -> None:
        check_kernel()
        self._zygotes: queue.LifoQueue[_Zygote | None] = queue.LifoQueue()
        for _ in range(workers - 1):
            self._zygotes.put(None)
        self._zygotes.put(_Zygote())
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self._closing = threading.Lock()
        self._closed = False

    def run(self, program: Program) -> Outcome:
        """Run one program. The outcome holds whatever the program does; an exception is a fault of the sandbox itself.

        Raises:
            SandboxUnavailableError: the zygote died twice under it, or the sandbox is closed.
        """
        zygote = self._zygotes.get()
        if self._closed:
            self._zygotes.put(zygote)
            raise SandboxUnavailableError("The sandbox is closed.")
        try:
            for _ in range(2):
                if zygote is None:
                    zygote = _Zygote()
                try:
                    return zygote.run(program)
                except OSError:
                    zygote.stop()
                    zygote = None
            raise SandboxUnavailableError(
                "The sandbox's process died twice under one program. Look for a lack of memory in the system's log."
            )
        except BaseException:
            # Whatever interrupted the run (Ctrl-C, say): a zygote with an unfinished child cannot be used again.
            if zygote is not None:
                zygote.stop()
                zygote = None
            raise
        finally:
            self._zygotes.put(zygote)

    def run_many(self, programs: Sequence[Program]) -> list[Outcome]:
        """Run programs side by side; the outcomes come in the order of the programs."""
        return list(self._threads.map(self.run, programs))

    def close(self) -> None:
        """Wait for what runs, and end every process."""
        with self._closing:
            if self._closed:
                return
            self._threads.shutdown(cancel_futures=True)
            zygotes = [self._zygotes.get() for _ in range(self._workers)]
            self._closed = True
            for zygote in zygotes:
                if zygote is not None:
                    zygote.stop()
                self._zygotes.put(None)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_kernel() -> None:
    """Raise SandboxUnavailableError where this machine lacks what confines programs."""
    if sys.platform != "linux":
        raise SandboxUnavailableError(f"It needs Linux, and this is {sys.platform}: run the workers on Linux.")
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise SandboxUnavailableError(
            f"Its system-call filter knows {' and '.join(ARCHITECTURES)}, and this machine is {machine}."
        )
    if landlock.abi() == 0:
        raise SandboxUnavailableError(
            "The kernel offers no Landlock. It needs Linux 5.13 or later with 'landlock' among the modules in "
            "/sys/kernel/security/lsm (boot with lsm=landlock,…), and a container runtime whose seccomp profile "
            "allows landlock_create_ruleset (Docker 20.10.10 or later)."
        )


class _Zygote:
    """One zygote process, and the one child at a time that it forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In a directory that is then removed: no file can be made there, and none is left.
        with theirs, tempfile.TemporaryDirectory(prefix="zhub-sandbox-") as directory:
            self._process = subprocess.Popen(
                [sys.executable, *INTERPRETER, str(Path(__file__).parents[1])],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=directory,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        self._control = ours
        try:
            self._control.settimeout(START_TIMEOUT_S)
            self._wait_until_ready()
            self._control.settimeout(REPLY_TIMEOUT_S)
            outcome = self.run(self_test.PROGRAM)
            if outcome.results != self_test.HELD:
                raise SandboxUnavailableError(
                    f"Its self-test got out or failed, so nothing is run: {outcome}. Report this with your kernel."
                )
        except BaseException as exc:
            self.stop()
            if isinstance(exc, OSError):
                raise SandboxUnavailableError(f"Its process did not start: {exc}.") from exc
            raise

    def _wait_until_ready(self) -> None:
        answer = self._control.recv(len(READY))
        assert self._process.stderr is not None
        if answer != READY:
            errors = self._process.stderr.read().decode(errors="replace").strip()
            raise SandboxUnavailableError(f"Its process did not start: {errors.rpartition(chr(10))[2]}")
        self._process.stderr.close()

    def run(self, program: Program) -> Outcome:
        """Run one program in a child of its own.

        Raises:
            OSError: the zygote is dead, or does not answer.
            SandboxUnavailableError: the child could not be confined; nothing of the program ran.
        """
        job = json.dumps(
            {"source": program.source, "expressions": list(program.expressions), "variables": dict(program.variables)}
        ).encode()
        limits = program.limits
        end_of_job, job_end = os.pipe()
        results_end, end_of_results = os.pipe()
        with os.fdopen(job_end, "wb", 0) as job_pipe, os.fdopen(results_end, "rb", 0) as results_pipe:
            try:
                request = REQUEST.pack(limits.memory_bytes, math.ceil(limits.wall_s) + 1)
                socket.send_fds(self._control, [request], [end_of_job, end_of_results])
            finally:
                os.close(end_of_job)
                os.close(end_of_results)
            lines, stopped = _exchange(
                JOB_LENGTH.pack(len(job)) + job, job_pipe.fileno(), results_pipe.fileno(), limits
            )
        self._control.send(END)
        answer = self._control.recv(REPLY.size)
        if len(answer) != REPLY.size:
            raise ConnectionResetError("the zygote is gone")
        status, _memory_kib = REPLY.unpack(answer)
        return _outcome(lines, stopped, status)

    def stop(self) -> None:
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Without its control socket it kills its child and ends.
            self._process.wait(1.0)
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


def _exchange(job: bytes, job_fd: int, results_fd: int, limits: Limits) -> tuple[list[bytes], str]:
    """Write the job and read lines until the last one, the end of the pipe or a limit; say which limit, if one."""
    os.set_blocking(job_fd, False)
    poll = select.poll()
    poll.register(job_fd, select.POLLOUT)
    poll.register(results_fd, select.POLLIN)
    deadline = time.monotonic() + limits.wall_s
    unsent = memoryview(job)
    received = bytearray()
    stopped = ""
    while not received.endswith(b'\n["done"]\n'):
        left = deadline - time.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else []
        if not ready:
            stopped = "timeout"
            break
        for descriptor, _event in ready:
            if descriptor == job_fd:
                with contextlib.suppress(BlockingIOError):
                    try:
                        unsent = unsent[os.write(job_fd, unsent) :]
                    except BrokenPipeError:
                        unsent = unsent[:0]
                if not unsent:
                    poll.unregister(job_fd)
        if any(descriptor == results_fd for descriptor, _event in ready):
            piece = os.read(results_fd, 1 << 16)
            received += piece
            if not piece:
                break
            if len(received) > limits.output_bytes + PRINTED_BYTES:
                stopped = "output"
                break
    # What follows the last line feed was cut off.
    return bytes(received).split(b"\n")[:-1], stopped


def _outcome(lines: list[bytes], stopped: str, status: int) -> Outcome:
    confined, *claims = [_claim(line) for line in lines] or [[CONFINED]]
    if confined[0] == UNCONFINED:
        raise SandboxUnavailableError(
            f"A process could not confine itself: {confined[1]}. A container runtime's seccomp profile may forbid "
            "landlock_restrict_self or seccomp; allow them."
        )
    failure = None
    results: list[Value | Unreadable | Raised] = []
    printed = "".join(claim[1] for claim in claims if _is_printed(claim))
    claims = [claim for claim in claims if not _is_printed(claim)]
    for index, claim in enumerate(claims):
        match claim:
            case ["raised", str(message), int() | None as line]:
                if index == 0:
                    failure = Raised(message, line)
                else:
                    results.append(Raised(message, line))
            case ["value", tree]:
                try:
                    results.append(Value(decode(tree)))
                except (UnreadableValueError, RecursionError) as exc:
                    results.append(Unreadable(str(exc)))
            case ["unreadable", str(found)]:
                results.append(Unreadable(found))
            case ["loaded"] | ["done"]:
                pass
            case _:
                return Outcome("died", tuple(results), failure, "it wrote into the channel of its results", printed)
    if stopped == "timeout":
        return Outcome("timeout", tuple(results), failure, "", printed)
    if stopped == "output":
        return Outcome("output", tuple(results), failure, "", printed)
    if claims and claims[-1] == ["done"]:
        return Outcome("finished", tuple(results), failure, "", printed)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # Killed by us, after it had closed its results.
        detail = "it closed its results" if number == signal.SIGKILL else f"killed by {signal.Signals(number).name}"
        return Outcome("died", tuple(results), failure, detail, printed)
    detail = f"it left with exit code {os.waitstatus_to_exitcode(status)}"
    return Outcome("died", tuple(results), failure, detail, printed)


def _is_printed(claim: list[Any]) -> bool:
    return len(claim) == 2 and claim[0] == "printed" and isinstance(claim[1], str)


def _claim(line: bytes) -> list[Any]:
    try:
        claim = json.loads(line)
    except (ValueError, RecursionError):
        return ["not JSON"]
    return claim if isinstance(claim, list) and claim else ["not a claim"]
