"""Processes that grade, so that what a user or a model wrote can be stopped whatever it does to the interpreter.

A regular expression, or a schema, can hold the interpreter's lock for hours; no thread and no signal handler of the
same process ends that. These processes run our code only. The kernel's timers end them, which need no lock and go on
where this process is gone. Programs of users run in ``zhub.sandbox``, which is confined as well.
"""

import atexit
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from zhub.errors import UnavailableError
from zhub.graders.limits import ITEM_CPU_S, ITEM_WALL_S

Input = TypeVar("Input")
Result = TypeVar("Result")

PLACES = 4
# Whom this thread or task grades for, so that nobody holds all places; None where there is only one.
owner: ContextVar[Hashable] = ContextVar("owner", default=None)
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 1.0
LENGTH = struct.Struct("<Q")
READY = b"\0"
TIMERS = (signal.SIGPROF, signal.SIGALRM)
OUT_OF_MEMORY = 77  # exit status of a process that reached its limit
# No secret and no address of a service is among them.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
# Libraries of linear algebra reserve memory for each thread that they might start.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Lost:
    """An input without a result, because its process was ended. ``reason`` says why, after "it"."""

    reason: str


@dataclass(frozen=True)
class Raised:
    """An exception as it passes between processes: those of ours take other arguments than they keep."""

    kind: type[Exception]
    args: tuple[Any, ...]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, error: Exception) -> "Raised":
        return cls(type(error), error.args, dict(vars(error)))

    def error(self) -> Exception:
        error = self.kind.__new__(self.kind)
        error.args = self.args
        vars(error).update(self.attributes)
        return error


class Processes:
    """``places`` processes, each made when it is first needed and replaced when it was ended. Thread-safe.

    An ``owner`` holds half of them at most, and waits for its own meanwhile.
    """

    def __init__(self, places: int = PLACES) -> None:
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(places):
            self._free.put(None)
        self._places = places
        self._held: Counter[Hashable] = Counter()
        self._given_back = threading.Condition()
        self._closing = threading.Lock()

    def map(
        self, function: Callable[[Input], Result], inputs: Sequence[Input], *, most_lost: int = 0
    ) -> list[Result | Lost]:
        """Call a function on each input, in one process: each ends within ``ITEM_CPU_S``, or is lost.

        With more than ``most_lost`` lost inputs, the rest is not tried and is lost for the same reason. The function
        is one of a module, or a ``partial`` of one.

        Raises:
            UnavailableError: no process starts.
            Exception: the first that the function raised.
        """
        with self._turn():
            return self._map(function, inputs, most_lost)

    def _map(self, function: Callable[[Input], Result], inputs: Sequence[Input], most_lost: int) -> list[Result | Lost]:
        results: list[Result | Lost] = []
        lost: list[Lost] = []
        process = self._free.get()
        try:
            while len(results) < len(inputs):
                if len(lost) > most_lost:
                    return results + lost[-1:] * (len(inputs) - len(results))
                if process is not None and not process.is_alive():
                    process.stop()
                    process = None
                process = process or _Process()
                try:
                    for result in process.run(function, inputs[len(results) :]):
                        results.append(result)
                except _EndedError as exc:
                    lost.append(Lost(str(exc)))
                    results.append(lost[-1])
            return results
        except _FunctionError as exc:
            raise exc.raised.error() from None
        except BaseException:
            # Whatever interrupted it (Ctrl-C, say): a process with an unfinished answer cannot be used again.
            if process is not None:
                process.stop()
            raise
        finally:
            self._free.put(process)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        holder = owner.get()
        if holder is None:
            yield
            return
        most = max(1, self._places // 2)
        with self._given_back:
            self._given_back.wait_for(lambda: self._held[holder] < most)
            self._held[holder] += 1
        try:
            yield
        finally:
            with self._given_back:
                self._held[holder] -= 1
                self._held += Counter()  # forgets who holds none
                self._given_back.notify_all()

    def call(self, function: Callable[[Input], Result], value: Input) -> Result | Lost:
        """Call a function on one input. Raises as ``map`` does."""
        (result,) = self.map(function, [value])
        return result

    def close(self) -> None:
        """Wait for what runs, and end every process. They start again when they are needed."""
        with self._closing:
            processes = [self._free.get() for _ in range(self._places)]
            for process in processes:
                if process is not None:
                    process.stop()
                self._free.put(None)


@cache
def own_processes() -> Processes:
    """Those of this process. They start when something is first graded."""
    processes = Processes()
    atexit.register(processes.close)
    return processes


class _EndedError(Exception):
    """The process was ended in the middle of an input; the message says why, after "it"."""


class _FunctionError(Exception):
    """The function raised; the process goes on."""

    def __init__(self, raised: Raised) -> None:
        self.raised = raised


class _Process:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        source_root = str(Path(__file__).parents[2])
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "zhub.graders.grading_process"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=kept | ENVIRONMENT | {"PYTHONPATH": source_root},
                start_new_session=True,
            )
        self._socket = ours
        self._socket.settimeout(START_TIMEOUT_S)
        try:
            ready = self._socket.recv(len(READY))
        except OSError:
            ready = b""
        if ready != READY:
            self.stop()
            raise UnavailableError("The process that grades did not start; standard error says why.")
        self._socket.settimeout(ITEM_WALL_S + STOP_TIMEOUT_S)

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def run(self, function: Callable[[Input], Result], inputs: Sequence[Input]) -> Iterator[Result]:
        """Yield the results as they come.

        Raises:
            _EndedError: the process was ended while it worked on the input after the last result.
            _FunctionError: the function raised.
        """
        try:
            send(self._socket, (function, inputs))
            for _ in inputs:
                result = receive(self._socket)
                if isinstance(result, Raised):
                    raise _FunctionError(result)
                yield result
        except (EOFError, OSError) as exc:
            raise _EndedError(self._reason()) from exc

    def _reason(self) -> str:
        timed_out = f"took longer than {ITEM_CPU_S:g} s"
        try:
            status = self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            return timed_out
        finally:
            self.stop()
        if -status in TIMERS:
            return timed_out
        return "took too much memory" if status == OUT_OF_MEMORY else f"ended its process (status {status})"

    def stop(self) -> None:
        self._socket.close()
        self._popen.kill()
        self._popen.wait()


def send(connection: socket.socket, message: Any) -> None:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    connection.sendall(LENGTH.pack(len(content)) + content)


def receive(connection: socket.socket) -> Any:
    """Raises EOFError where the other end is gone, TimeoutError where it is silent."""
    (length,) = LENGTH.unpack(_read(connection, LENGTH.size))
    return pickle.loads(_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        piece = connection.recv(min(length - len(content), 1 << 20))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)
