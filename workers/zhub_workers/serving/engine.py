"""The generation engine of a serving replica: one thread, and a lane of answers for each base model that it holds.

Requests join a lane's running answers between two tokens and leave them with their last. Each answer follows its own
expert or mixture: of an SVF ``y = W x + U((s·Δ_b) ∘ (Vᵀ x))``, and of the others as ``row_changes`` says; exactly the
base where nothing changes. No weight is ever swapped. Bases and the files of experts are fetched beside the thread, and
grammars compiled, so that nobody's answer waits for what another needs.
"""

import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from zhub.errors import TooManyAtOnceError, UnavailableError
from zhub.generation import MAX_UNANSWERED, GenerationRequest
from zhub.specs import BasisReference
from zhub.storage.object_store import ObjectStore
from zhub_workers.model.model_cache import ModelCache
from zhub_workers.model.weight_files import device_memory_bytes
from zhub_workers.serving.asked import Asked, Request, Send
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.lane import Lane

log = logging.getLogger("zhub.serving")

PREPARERS = 8
# Whatever brings requests and takes answers away comes first. Else what waits does so before the replica, where nothing
# is fair between organisations, and steps are made for the few that got through.
NICE = 5
# What a base needs, in the bytes of its weights' files: they may be of half the precision, and its basis comes to them.
LOADED_RATIO = 4
# Until the first piece of an answer; sooner than the API gives up (``FIRST_LINE_TIMEOUT_S``), so that it says why.
FIRST_PIECE_WITHIN_S = 240.0
LOOK_S = 1.0  # how often an engine that does nothing looks who waits in vain
STUCK_AFTER_S = 900.0  # in one step: the first of a base may read a long prompt


@dataclass(frozen=True)
class MemoryShares:
    """Of the device's memory: for all bases, and of that for the keys and values of one.

    A CPU promises the latter, and gives what is written to.
    """

    bases: float = 0.75
    cache: float = 0.125


LaneKey = tuple[str, BasisReference | None]  # the digest of a base's files, because an equal basis is not enough


class Engine:
    """Answers requests with ``send``, which it calls from its own thread: Started, Text…, Ended, or Failed; a request
    for embeddings with Embeddings or Failed."""

    def __init__(
        self, store: ObjectStore, cache_dir: Path, device: str | None, shares: MemoryShares = MemoryShares()
    ) -> None:
        self._store = store
        self._shares = shares
        self._cache_dir = cache_dir
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._memory_bytes = device_memory_bytes(self._device)
        self._models = ModelCache(self._device)
        self._experts = Experts(store, cache_dir)
        self._lanes: dict[LaneKey, Lane] = {}  # the one that was used last at the end
        self._wanted: dict[LaneKey, list[Asked]] = {}  # by whom, while the base is not here
        self._loading: set[LaneKey] = set()
        self._open: Counter[str] = Counter()
        self._unbegun: deque[Asked] = deque()  # who waits for a first piece, and some who have it, the oldest first
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._preparers = ThreadPoolExecutor(PREPARERS, "prepare")
        self._busy_since: float | None = None
        self._counted_at = 0.0
        self.queue_s = 0.0  # that the prompts take to be read which are not, as was found within the last LOOK_S
        self._thread = threading.Thread(target=self._run, daemon=True, name="engine")
        self._thread.start()

    def check_health(self) -> None:
        """Raise RuntimeError if no request will be answered any more: the engine's thread has died or stands still."""
        if not self._thread.is_alive():
            raise RuntimeError("The engine's thread has died; its log says why.")
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > STUCK_AFTER_S:
            raise RuntimeError(f"The engine has generated nothing for {STUCK_AFTER_S:.0f} s in the middle of a batch.")

    def submit(self, request: Request, send: Send) -> Callable[[], None]:
        """Take a request; return what ends it early, for when nobody waits for its answer any more.

        Raises:
            TooManyAtOnceError: too many requests of its organisation are not answered yet.
        """
        with self._lock:
            if self._open[request.org_id] >= MAX_UNANSWERED:
                raise TooManyAtOnceError("unanswered requests", MAX_UNANSWERED)
            self._open[request.org_id] += 1
            asked = Asked(request, send, self._close)
            self._unbegun.append(asked)
        self._inbox.put(partial(self._place, asked))
        return asked.end

    def _close(self, asked: Asked) -> None:
        with self._lock:
            self._open[asked.request.org_id] -= 1

    def _run(self) -> None:
        # Of this thread alone, and of those that torch starts for it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            busy = [lane for lane in self._lanes.values() if not lane.is_idle]
            self._take(wait=not busy)
            self._end_overdue()
            self._count_queue()
            for lane in busy:
                self._busy_since = time.monotonic()
                try:
                    lane.step()
                except Exception as exc:
                    log.exception("a step of a base failed", extra={"action": "batch_failed"})
                    lane.fail(exc)
            self._busy_since = None
            self._load_wanted()  # where a lane has become idle there may be room

    def _take(self, *, wait: bool) -> None:
        """Do what has come in; where there is nothing else to do, wait a little for a first thing."""
        while True:
            try:
                act = self._inbox.get(block=wait, timeout=LOOK_S)
            except queue.Empty:
                return
            self._busy_since = time.monotonic()
            act()
            self._busy_since = None
            wait = False

    def _count_queue(self) -> None:
        now = time.monotonic()
        if now - self._counted_at >= LOOK_S:
            self._counted_at = now
            self.queue_s = sum(lane.queue_s() for lane in self._lanes.values())

    def _end_overdue(self) -> None:
        """End the requests that have waited too long for a first piece of their answer."""
        overdue = time.monotonic() - FIRST_PIECE_WITHIN_S
        while self._unbegun and (self._unbegun[0].is_begun or self._unbegun[0].asked_at < overdue):
            asked = self._unbegun.popleft()
            if not asked.is_begun:
                waited = f"No answer began within {FIRST_PIECE_WITHIN_S:.0f} s"
                asked.fail(UnavailableError(f"{waited}: {self._what_it_waits_for(asked)}. Try again later."))

    def _what_it_waits_for(self, asked: Asked) -> str:
        key, name = self._key(asked.request), asked.request.base.name
        if key in self._loading:
            return f"the base model '{name}' is still being loaded"
        if key in self._wanted:
            return f"other base models, which are asked for all the time, hold the memory that '{name}' needs"
        return f"the replica answers others, and {self._open.total() - 1} requests wait or are being answered beside it"

    def _place(self, asked: Asked) -> None:
        """Bring what a request needs, its base first."""
        key = self._key(asked.request)
        lane = self._lanes.pop(key, None)
        if lane is not None:
            self._lanes[key] = lane
            self._preparers.submit(self._prepare, asked, lane)
            return
        self._wanted.setdefault(key, []).append(asked)
        self._load_wanted()

    def _key(self, request: Request) -> LaneKey:
        """Of the lane that can answer; while the base alone is asked for, any of its lanes can."""
        digest, basis = request.base.digest, _basis_of(request)
        if basis is None:
            return next((key for key in self._lanes if key[0] == digest), (digest, None))
        return digest, basis

    def _load_wanted(self) -> None:
        """Begin to load the bases that are wanted, those that there is room for."""
        for key in [key for key in self._wanted if key not in self._loading]:
            wanted = self._wanted[key] = [asked for asked in self._wanted[key] if not asked.ended]
            if not wanted:
                del self._wanted[key]
            elif self._make_room(wanted[0].request):
                self._loading.add(key)
                threading.Thread(target=self._load, args=(key, wanted[0].request), name="load", daemon=True).start()

    def _make_room(self, request: Request) -> bool:
        """Drop bases that nobody asks for, the longest unused first, until another fits; whether it does now."""
        need = LOADED_RATIO * sum(file.size_bytes for file in request.base.files)
        budget = self._shares.bases * self._memory_bytes - need
        for key, lane in list(self._lanes.items()):
            if sum(other.memory_bytes for other in self._lanes.values()) <= budget:
                break
            if lane.is_idle:
                del self._lanes[key]
                self._models.drop(key[0])
        # Where it is larger than the device says, loading it says so in numbers.
        return not self._lanes or sum(lane.memory_bytes for lane in self._lanes.values()) <= budget

    def _load(self, key: LaneKey, request: Request) -> None:
        try:
            adapted = self._models.get(request.base, key[1], self._store, self._cache_dir)
            lane = Lane(adapted, self._experts, int(self._shares.cache * self._memory_bytes))
        except Exception as exc:
            self._inbox.put(partial(self._loaded, key, exc))
        else:
            self._inbox.put(partial(self._loaded, key, lane))

    def _loaded(self, key: LaneKey, lane: Lane | Exception) -> None:
        self._loading.discard(key)
        wanted = self._wanted.pop(key)
        if isinstance(lane, Exception):
            for asked in wanted:
                asked.fail(lane)
            return
        for other in [other for other in self._lanes if other[0] == key[0] and self._lanes[other].is_idle]:
            del self._lanes[other]  # that of the base before it was decomposed
        self._lanes[key] = lane
        for asked in wanted:
            self._place(asked)

    def _prepare(self, asked: Asked, lane: Lane) -> None:
        try:
            lane.prepare(asked)
        except Exception as exc:
            asked.fail(exc)
        else:
            self._inbox.put(partial(self._start, asked))

    def _start(self, asked: Asked) -> None:
        lane = self._lanes.get(self._key(asked.request))
        if lane is None:  # dropped meanwhile
            self._place(asked)
            return
        try:
            lane.start(asked)
        except Exception as exc:
            asked.fail(exc)


def _basis_of(request: Request) -> BasisReference | None:
    return request.basis if isinstance(request, GenerationRequest) else None
