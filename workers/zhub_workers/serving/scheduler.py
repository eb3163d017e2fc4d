"""What is read next: which tokens of which answers go through the model in the next step. Pure, without a model.

Answers join and leave the running ones between two steps. Each whose prompt is read gets its next token in every step,
and what is read of prompts beside them is bounded, so that a long prompt delays nobody's next token by much. Keys and
values lie in blocks. Where none is left, the answer that came last gives its own back and waits to be read again:
nothing fails for want of memory.

Between organisations the one comes first that has been served least, by a counter of the tokens read for each (after
arXiv 2401.00588); and one that holds more than its share of the places gives some up to one that waits.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from zhub_workers.serving.blocks import BLOCK_TOKENS, Blocks, contents

ANSWER_COST = 2  # of a token of an answer, in those of a prompt: it costs a step, and shares it


@dataclass(eq=False)
class Answer:
    """An answer in the making.

    Attributes:
        org_id: whose it is.
        salt: what its keys and values depend on beside its tokens.
        tokens: its prompt, and what has been answered.
        max_tokens: of prompt and answer together.
        read: how many tokens have their keys and values in ``blocks``.
        cached: how many of them were there when it first ran; None before.
        contents: what its whole blocks hold, as far as that was asked for.
    """

    org_id: str
    salt: bytes
    tokens: list[int]
    max_tokens: int
    read: int = 0
    cached: int | None = None
    blocks: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read

    def held(self) -> list[bytes]:
        """What each of its whole blocks holds, read or not."""
        self.contents = contents(self.salt, self.tokens, self.contents)
        return self.contents


@dataclass(frozen=True)
class Part:
    """The next ``count`` unread tokens of an answer; with the last of them its next token can be chosen."""

    answer: Answer
    count: int

    @property
    def is_last(self) -> bool:
        return self.count == self.answer.unread


class Scheduler:
    """Running answers and those that wait, in ``blocks``, at most ``places`` of them running.

    ``divided``: whether a prompt may be read in parts.
    """

    def __init__(self, blocks: Blocks, *, places: int, divided: bool = True) -> None:
        self._blocks = blocks
        self._places = places
        self._divided = divided
        self._waiting: dict[str, deque[Answer]] = {}
        self._running: list[Answer] = []  # those that were admitted last at the end
        self._served: Counter[str] = Counter()
        self._next: dict[Answer, int] = {}  # of the step that is being planned

    @property
    def running(self) -> Sequence[Answer]:
        return self._running

    def __len__(self) -> int:
        """How many answers are not ended."""
        return len(self._running) + sum(map(len, self._waiting.values()))

    @property
    def room(self) -> int:
        """How many tokens all blocks together hold."""
        return self._blocks.count * BLOCK_TOKENS

    def add(self, answer: Answer) -> None:
        """Let an answer wait for its turn. Its ``max_tokens`` are no more than there is room for."""
        if answer.org_id not in self._active():
            # Who asked for nothing has saved nothing up.
            least = min((self._served[org_id] for org_id in self._active()), default=0)
            self._served[answer.org_id] = max(self._served[answer.org_id], least)
        self._waiting.setdefault(answer.org_id, deque()).append(answer)

    def plan(self, prompt_tokens: int) -> list[Part]:
        """The next step: a token of each answer under way, and about ``prompt_tokens``, at least 1, of prompts."""
        self._next = {}
        for answer in list(self._running):
            if answer.unread == 1 and self._has_room(answer, 1):
                self._next[answer] = 1
        left = prompt_tokens
        for answer in [answer for answer in self._running if answer.unread > 1]:
            count = self._count(answer, left)
            if left > 0 and self._has_room(answer, count):
                self._next[answer] = count
                left -= count
        while left > 0 and (admitted := self._admit(left)):
            self._next[admitted.answer] = admitted.count
            left -= admitted.count
        return [Part(answer, count) for answer, count in self._next.items()]

    def done(self, parts: Sequence[Part]) -> None:
        """The tokens of these parts have been read."""
        for part in parts:
            answer = part.answer
            whole = answer.read // BLOCK_TOKENS
            answer.read += part.count
            self._served[answer.org_id] += part.count if part.count > 1 else ANSWER_COST
            for index in range(whole, answer.read // BLOCK_TOKENS):
                self._blocks.note(answer.blocks[index], answer.held()[index])

    def end(self, answer: Answer) -> None:
        """Take an answer out, whether it runs or waits; one that is out already stays out."""
        if answer in self._running:
            self._running.remove(answer)
            self._release(answer)
        elif answer in self._waiting.get(answer.org_id, ()):
            self._waiting[answer.org_id].remove(answer)
            self._forget_empty(answer.org_id)

    def forget(self, answer: Answer) -> list[int]:
        """End an answer whose keys and values nobody may use again; return the blocks that had them alone."""
        own = [block for block in answer.blocks if self._blocks.forget(block)]
        self.end(answer)
        return own

    def _admit(self, left: int) -> Part | None:
        """Let the next answer run whose turn it is; None where none can."""
        for org_id in sorted(self._waiting, key=self._served.__getitem__):
            answer = self._waiting[org_id][0]
            if len(self._running) >= self._places and not self._give_up_place(org_id):
                continue
            if part := self._start(answer, left):
                self._waiting[org_id].popleft()
                self._forget_empty(org_id)
                self._running.append(answer)
                return part
        return None

    def _start(self, answer: Answer, left: int) -> Part | None:
        # The last token is read in any case: its logits are wanted.
        wanted = answer.held()[: (len(answer.tokens) - 1) // BLOCK_TOKENS]
        found = self._blocks.find(wanted)
        if wanted[len(found) : len(found) + 1] and wanted[len(found)] in self._being_read():
            self._blocks.give_back(found)
            return None  # another reads the same just now
        answer.read = len(found) * BLOCK_TOKENS
        count = self._count(answer, left)
        needed = _blocks_for(answer.read + count) - len(found)
        # A block to grow for each that runs, or the next step would take back what this one gives.
        if self._running and self._blocks.available < needed + len(self._running):
            self._blocks.give_back(found)
            answer.read = 0
            return None
        answer.blocks = [*found, *(self._blocks.take() for _ in range(needed))]
        if answer.cached is None:
            answer.cached = answer.read
        return Part(answer, count)

    def _count(self, answer: Answer, left: int) -> int:
        return min(answer.unread, left) if self._divided else answer.unread

    def _has_room(self, answer: Answer, count: int) -> bool:
        """Give a running answer the blocks for its next tokens, where need be those of answers that came later."""
        if answer not in self._running:
            return False
        while (missing := _blocks_for(answer.read + count) - len(answer.blocks)) > self._blocks.available:
            last = self._running[-1]
            self._put_back(last)
            if last is answer:
                return False
        answer.blocks += [self._blocks.take() for _ in range(missing)]
        return True

    def _give_up_place(self, org_id: str) -> bool:
        """Where an organisation has less than its share of the places, take one from who has most beyond it."""
        held = Counter(answer.org_id for answer in self._running)
        share = self._places // len(self._active())
        most, count = held.most_common(1)[0]
        if held[org_id] >= share or count <= share:
            return False
        self._put_back(next(answer for answer in reversed(self._running) if answer.org_id == most))
        return True

    def _put_back(self, answer: Answer) -> None:
        """Stop an answer that runs; it is read again from what others have not needed meanwhile."""
        self._running.remove(answer)
        self._next.pop(answer, None)
        self._release(answer)
        self._waiting.setdefault(answer.org_id, deque()).appendleft(answer)

    def _release(self, answer: Answer) -> None:
        self._blocks.give_back(answer.blocks)
        answer.blocks, answer.read = [], 0

    def _being_read(self) -> set[bytes]:
        """What the blocks will hold that running answers have still to read."""
        return {
            content
            for answer in self._running
            if answer.unread > 1
            for content in answer.held()[answer.read // BLOCK_TOKENS :]
        }

    def _active(self) -> set[str]:
        return {*self._waiting, *(answer.org_id for answer in self._running)}

    def _forget_empty(self, org_id: str) -> None:
        if not self._waiting[org_id]:
            del self._waiting[org_id]


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
