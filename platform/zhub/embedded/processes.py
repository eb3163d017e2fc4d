"""Child processes: started so that they die with us, watched, restarted, and ended with their descendants."""

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

from zhub.errors import EmbeddedError

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

MAX_QUICK_FAILURES = 5
FAILURE_WINDOW_S = 60.0
FIRST_BACK_OFF_S = 0.25
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
    ready_timeout_s: float = 60.0
    needs: str | None = None
    """The child that must be ready first; when that one is restarted, so is this one."""
    before_start: Callable[[], object] | None = None
    """Clears away what the previous run of this child left."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends when we die without stopping it: by then nobody waits for a polite end."""
    user: ServerUser | None = None
    pass_fds: Sequence[int] = ()
    """Open descriptors that the child inherits under the same numbers, whichever user it runs as."""


@dataclass
class _Supervised:
    child: Child
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
    ready: bool = False
    ready_by: float = math.inf
    start_at: float = -math.inf
    failures: "deque[float]" = field(default_factory=deque)


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
        self._all: dict[str, _Supervised] = {}
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
        self._all[child.name] = _Supervised(child, log)

    def is_ready(self, name: str) -> bool:
        return self._all[name].ready

    def tick(self) -> None:
        """Start, restart and look after the children; takes milliseconds unless one has just crashed.

        Raises:
            EmbeddedError: a child keeps ending, or is not ready in time.
        """
        self._reap_orphans()
        for it in self._all.values():
            if self._stopping:
                return
            needed = self._all[it.child.needs] if it.child.needs else None
            if it.popen is not None and it.popen.poll() is not None:
                self._note_failure(it, it.popen.returncode)
            elif it.popen is not None and needed and not needed.ready:
                self._progress(f"{it.child.name} is restarted with {needed.child.name}.")
                self._stop_one(it)
            elif it.popen is None and time.monotonic() >= it.start_at and (needed is None or needed.ready):
                self._start(it)
            elif it.popen is not None and not it.ready:
                self._check_ready(it)
        if time.monotonic() >= self._next_record:
            self._write_record()

    def stop(self) -> None:
        """End every child, the last one started first, each with its descendants. Safe to repeat."""
        self._stopping = True
        for it in reversed(self._all.values()):
            self._stop_one(it)
        self._end_orphans()
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """End everything now. Callable from a signal handler; ``stop`` then finds nothing left to wait for."""
        self._stopping = True
        for _ in range(20):  # a process may start another while we look
            mine = [process for child in self._children() for process in (child, *_descendants(child))]
            alive = [process for process in mine if _alive(process)]
            for process in alive:
                _signal(process, signal.SIGKILL)
            if not alive:
                break

    def _start(self, it: _Supervised) -> None:
        child = it.child
        if child.before_start:
            child.before_start()
        try:
            it.popen = spawn(
                child.argv,
                env=child.env,
                log=it.log,
                user=child.user,
                pass_fds=child.pass_fds,
                death_signal=child.death_signal,
            )
        except OSError as exc:
            raise EmbeddedError(f"{child.name} cannot be started: {child.argv[0]}: {exc}") from exc
        it.ready = child.ready is None
        it.ready_by = time.monotonic() + child.ready_timeout_s
        self._write_record()

    def _check_ready(self, it: _Supervised) -> None:
        assert it.child.ready is not None
        if it.child.ready():
            it.ready = True
            self._progress(f"{it.child.name} is ready.")
            self._write_record()
        elif time.monotonic() > it.ready_by:
            raise EmbeddedError(f"{it.child.name} was not ready after {it.child.ready_timeout_s:g} s. {_log_end(it)}")

    def _note_failure(self, it: _Supervised, status: int) -> None:
        now = time.monotonic()
        it.popen, it.ready = None, False
        it.failures.append(now)
        while it.failures[0] < now - FAILURE_WINDOW_S:
            it.failures.popleft()
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        if len(it.failures) >= MAX_QUICK_FAILURES:
            times = f"{len(it.failures)} times within {FAILURE_WINDOW_S:g} s"
            raise EmbeddedError(f"{it.child.name} {how}, {times}. {_log_end(it)}")
        self._end_orphans()
        back_off_s = FIRST_BACK_OFF_S * 2 ** (len(it.failures) - 1)
        it.start_at = time.monotonic() + back_off_s
        self._progress(f"{it.child.name} {how}; starting it again in {back_off_s:g} s. Its log is {it.log}.")

    def _stop_one(self, it: _Supervised) -> None:
        if it.popen is None:
            return
        family = _descendants(psutil.Process(it.popen.pid)) if it.popen.poll() is None else []
        if it.popen.poll() is None:
            it.popen.send_signal(it.child.stop_signal)
            try:
                it.popen.wait(it.child.stop_grace_s)
            except subprocess.TimeoutExpired:
                self._progress(f"{it.child.name} did not stop within {it.child.stop_grace_s:g} s and is killed.")
                it.popen.kill()
                it.popen.wait()
        it.popen, it.ready = None, False
        _end(family, grace_s=2.0)

    def _children(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid not in self._before]

    def _end_orphans(self) -> None:
        started = {it.popen.pid for it in self._all.values() if it.popen}
        orphans = [child for child in self._children() if child.pid not in started]
        _end([*orphans, *(process for orphan in orphans for process in _descendants(orphan))], grace_s=2.0)
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        """Collect the exit status of adopted orphans, which would stay zombies otherwise."""
        if sys.platform != "linux":
            return
        started = {it.popen.pid for it in self._all.values() if it.popen}
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
        """Note who runs, so that the next stack can end what a dead supervisor and the kernel left."""
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
    give_up = time.monotonic() + grace_s
    while any(_alive(process) for process in processes) and time.monotonic() < give_up:
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


def _log_end(it: _Supervised) -> str:
    lines = it.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return f"The end of {it.log}:\n" + "\n".join(f"  {line}" for line in lines)
