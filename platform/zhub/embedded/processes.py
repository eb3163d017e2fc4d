"""Child processes: started so that they die with this process, watched, restarted, and ended with their descendants."""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from zhub.embedded.liveness import Liveness
from zhub.errors import EmbeddedError

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

MAX_QUICK_FAILURES = 5
FAILURE_WINDOW_S = 60.0
FIRST_BACK_OFF_S, MAX_BACK_OFF_S = 0.25, 30.0
STARTING_NOTE_S = 30.0  # after that long, and then after each such time, it is said that a child still starts
LOG_LINES_SHOWN = 20
RECORD_EVERY_S = 2.0


@dataclass(frozen=True)
class ServerUser:
    """The user that a child runs as, where it is not ours."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Child:
    """A program to keep running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], bool] | None = None
    """Answers at once. Without it the child counts as ready as soon as it runs."""
    ready_timeout_s: float = 300.0
    """Long, because a machine may be busy: a child that cannot start ends by itself."""
    alive: Callable[[], bool] | None = None
    """Whether it answers, within seconds. One that has answered and no longer does is killed and started again."""
    needs: str | None = None
    """The child that must be ready first; when that one is restarted, so is this one."""
    before_start: Callable[[], object] | None = None
    """Removes what the previous run of this child left."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    """The signal that the kernel sends when this process dies without stopping the child."""
    user: ServerUser | None = None
    pass_fds: Sequence[int] = ()
    """Open descriptors that the child inherits under the same numbers, whichever user it runs as."""


@dataclass
class _Service:
    """A child with the state of its current run."""

    child: Child
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
    ready: bool = False
    started_at: float = -math.inf
    note_at: float = math.inf
    liveness: Liveness | None = None
    start_at: float = -math.inf
    failures: "deque[float]" = field(default_factory=deque)
    failed_starts: int = 0
    """In a row: it ended before it was ready."""


class Supervisor:
    """Keeps children running while ``tick`` is called several times a second, and ends them on leaving.

    One thread, the main one: on Linux a child dies with the thread that started it. On Linux this process also
    adopts the orphans of its children (Ray's workers, say), so that none is forgotten; every direct child that
    this process neither had before nor started through the supervisor counts as such an orphan.
    """

    def __init__(self, *, logs: Path, record: Path, progress: Callable[[str], None]) -> None:
        self._logs = logs
        self._record = record
        self._progress = progress
        self._all: dict[str, _Service] = {}
        self._before = {child.pid for child in psutil.Process().children()}
        self._next_record = -math.inf
        self._stopping = False

    def __enter__(self) -> Self:
        _adopt_orphans(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        _adopt_orphans(False)

    def add(self, child: Child) -> None:
        """Start this child as soon as what it needs is ready."""
        log = self._logs / f"{child.name}.log"
        if log.exists():
            log.replace(log.with_suffix(".1.log"))
        self._all[child.name] = _Service(child, log)

    def is_ready(self, name: str) -> bool:
        return self._all[name].ready

    def tick(self) -> None:
        """Start, restart and check the children; takes milliseconds unless one has just crashed.

        Raises:
            EmbeddedError: a child keeps ending, or is not ready in time.
        """
        self._reap_orphans()
        for service in self._all.values():
            if self._stopping:
                return
            needed = self._all[service.child.needs] if service.child.needs else None
            if service.popen is not None and service.popen.poll() is not None:
                self._note_failure(service, service.popen.returncode)
            elif service.popen is not None and needed and not needed.ready:
                self._progress(f"{service.child.name} is restarted with {needed.child.name}.")
                self._stop_one(service)
            elif service.popen is None and time.monotonic() >= service.start_at and (needed is None or needed.ready):
                self._start(service)
            elif service.popen is not None and service.liveness is not None and service.liveness.is_lost():
                self._progress(f"{service.child.name} runs and does not answer; it is killed.")
                # Not asked to stop: it could not hear that. The next tick starts it again.
                service.popen.kill()
                service.popen.wait()
            elif service.popen is not None and not service.ready:
                self._check_ready(service)
        if time.monotonic() >= self._next_record:
            self._write_record()

    def stop(self) -> None:
        """End every child, the last one started first, each with its descendants. Safe to repeat."""
        self._stopping = True
        for service in reversed(self._all.values()):
            self._stop_one(service)
        self._end_orphans()
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End everything now. Callable from a signal handler; ``stop`` then finds nothing left to wait for."""
        self._stopping = True
        for _ in range(20):  # a process may start another meanwhile
            running = [process for child in self._children() for process in (child, *_descendants(child))]
            alive = [process for process in running if _alive(process)]
            for process in alive:
                _signal(process, signal.SIGKILL)
            if not alive:
                break

    def _start(self, service: _Service) -> None:
        child = service.child
        if child.before_start:
            child.before_start()
        try:
            service.popen = spawn(
                child.argv,
                env=child.env,
                log=service.log,
                user=child.user,
                pass_fds=child.pass_fds,
                death_signal=child.death_signal,
            )
        except OSError as exc:
            raise EmbeddedError(f"{child.name} cannot be started: {child.argv[0]}: {exc}") from exc
        service.ready = child.ready is None
        service.liveness = Liveness(child.alive) if child.alive else None
        service.started_at = time.monotonic()
        service.note_at = service.started_at + STARTING_NOTE_S
        self._write_record()

    def _check_ready(self, service: _Service) -> None:
        assert service.child.ready is not None
        name, starting_s = service.child.name, time.monotonic() - service.started_at
        if service.child.ready():
            service.ready, service.failed_starts = True, 0
            if service.liveness is not None:
                service.liveness.note_answer()
            self._progress(f"{name} is ready.")
            self._write_record()
        elif starting_s > service.child.ready_timeout_s:
            raise EmbeddedError(f"{name} was not ready after {service.child.ready_timeout_s:g} s. {_log_end(service)}")
        elif time.monotonic() > service.note_at:
            service.note_at += STARTING_NOTE_S
            self._progress(f"{name} is still starting, after {starting_s:.0f} s. Its log is {service.log}.")

    def _note_failure(self, service: _Service, status: int) -> None:
        now = time.monotonic()
        if not service.ready:
            service.failed_starts += 1
        service.popen, service.ready = None, False
        service.failures.append(now)
        while service.failures[0] < now - FAILURE_WINDOW_S:
            service.failures.popleft()
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        if len(service.failures) >= MAX_QUICK_FAILURES:
            times = f"{len(service.failures)} times within {FAILURE_WINDOW_S:g} s"
            raise EmbeddedError(f"{service.child.name} {how}, {times}. {_log_end(service)}")
        self._end_orphans()
        # On a busy machine a program may reach a limit of its own, as Ray does after half a minute: each failed start
        # leaves the machine alone for longer.
        failures = max(len(service.failures), service.failed_starts)
        back_off_s = min(MAX_BACK_OFF_S, FIRST_BACK_OFF_S * 2 ** (failures - 1))
        service.start_at = now + back_off_s
        self._progress(f"{service.child.name} {how}; starting it again in {back_off_s:g} s. Its log is {service.log}.")

    def _stop_one(self, service: _Service) -> None:
        if service.popen is None:
            return
        family = _descendants(psutil.Process(service.popen.pid)) if service.popen.poll() is None else []
        if service.popen.poll() is None:
            service.popen.send_signal(service.child.stop_signal)
            try:
                service.popen.wait(service.child.stop_grace_s)
            except subprocess.TimeoutExpired:
                self._progress(
                    f"{service.child.name} did not stop within {service.child.stop_grace_s:g} s and is killed."
                )
                service.popen.kill()
                service.popen.wait()
        service.popen, service.ready = None, False
        _end(family, grace_s=2.0)

    def _children(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid not in self._before]

    def _end_orphans(self) -> None:
        started = {service.popen.pid for service in self._all.values() if service.popen}
        orphans = [child for child in self._children() if child.pid not in started]
        _end([*orphans, *(process for orphan in orphans for process in _descendants(orphan))], grace_s=2.0)
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        """Collect the exit status of adopted orphans, which would stay zombies otherwise."""
        if sys.platform != "linux":
            return
        started = {service.popen.pid for service in self._all.values() if service.popen}
        while True:
            try:
                # WNOWAIT only looks: the status of a child of ours belongs to its Popen.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in started or ended.si_pid in self._before:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)

    def _write_record(self) -> None:
        """Record the running processes, so that the next stack can end those that outlive this supervisor."""
        running = [process for child in self._children() for process in (child, *_descendants(child))]
        rows = []
        for process in running:
            try:
                rows.append({"pid": process.pid, "create_time": process.create_time(), "name": process.name()})
            except psutil.Error:
                continue
        unfinished = self._record.with_suffix(".new")
        unfinished.write_text(json.dumps(rows))
        unfinished.replace(self._record)
        self._next_record = time.monotonic() + RECORD_EVERY_S


def end_recorded(record: Path) -> int:
    """End what an earlier supervisor recorded and left running; how many processes that was.

    A process is the recorded one if its pid and its time of creation agree.
    """
    try:
        rows = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return 0
    left = []
    for row in rows:
        try:
            process = psutil.Process(row["pid"])
            if abs(process.create_time() - row["create_time"]) < 1.0:
                left += [process, *_descendants(process)]
        except psutil.NoSuchProcess:
            continue
    _end(left, grace_s=5.0)
    record.unlink()
    return len(left)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    user: ServerUser | None = None,
    pass_fds: Sequence[int] = (),
    death_signal: signal.Signals = signal.SIGKILL,
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own (no Ctrl-C from our terminal), its output appended to ``log``.

    On Linux it gets ``death_signal`` when the *thread* that called this ends, so call it from the main thread.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
            cwd="/" if user else None,  # ours may be closed to that user
            pass_fds=tuple(pass_fds),
            preexec_fn=_die_with_parent(death_signal),
        )


def _die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    # Runs after the change of user, which would clear the setting.
    def set_death_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the setting took effect

    return set_death_signal


def _adopt_orphans(adopt: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(processes: Sequence[psutil.Process], *, grace_s: float) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        if _alive(process):
            _signal(process, signal.SIGKILL)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(number)


def _log_end(service: _Service) -> str:
    lines = service.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return f"The end of {service.log}:\n" + "\n".join(f"  {line}" for line in lines)
