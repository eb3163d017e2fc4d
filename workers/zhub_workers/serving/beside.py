"""Reading that is no answer's: it goes on a few layers at a time between the steps of the answers, never during one.

Where a prompt lies, or what the base says of it, takes a forward over the whole of it. Done at once, that would hold up
everybody's next token for as long. The forward runs in a thread of its own, which goes on only when it is told to, and
waits again before the next layer: no code that reads with a model need know of it. The thread ends with its reading, so
that nothing of a base that is dropped stays.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

_THREAD = threading.local()


def pause_between_layers(model: nn.Module) -> None:
    """Let the forwards of a model wait before each layer, where they run in a ``Beside``; elsewhere they do not."""
    for layer in _layers(model):
        layer.register_forward_pre_hook(_wait)


def _wait(*_: object) -> None:
    beside: Beside | None = getattr(_THREAD, "beside", None)
    if beside is not None:
        beside.wait()


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model of text, one after the other; none where they are not found."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)  # type: ignore[operator,union-attr]
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((list(found) for found in lists if len(found) == count), [])


@dataclass(frozen=True)
class Reading:
    """What is to be read. ``read`` raises nothing."""

    org_id: str
    read: Callable[[], None]


class Beside:
    """Readings that wait, one of an organisation after one of another's, and the one that goes on."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Reading]] = OrderedDict()  # whose turn it is first
        self._is_reading = False
        self._may_go_on = threading.Semaphore(0)
        self._waits = threading.Semaphore(0)

    @property
    def is_idle(self) -> bool:
        return not self._is_reading and not self._waiting

    def add(self, reading: Reading) -> None:
        """Let it wait for its turn."""
        self._waiting.setdefault(reading.org_id, deque()).append(reading)

    def go_on(self) -> None:
        """Read until before the next layer, or to an end; return then. Call it where something waits or is read."""
        if self._is_reading:
            self._may_go_on.release()
        else:
            self._is_reading = True
            threading.Thread(target=self._run, args=(self._next(),), daemon=True, name="beside").start()
        self._waits.acquire()

    def wait(self) -> None:
        """Let ``go_on`` return, until it is called again."""
        self._waits.release()
        self._may_go_on.acquire()

    def _next(self) -> Reading:
        org_id, readings = self._waiting.popitem(last=False)
        reading = readings.popleft()
        if readings:
            self._waiting[org_id] = readings
        return reading

    def _run(self, reading: Reading) -> None:
        _THREAD.beside = self
        try:
            reading.read()
        finally:
            self._is_reading = False
            self._waits.release()
