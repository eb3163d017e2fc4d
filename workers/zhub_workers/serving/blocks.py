"""Which blocks of the key-value cache hold what: who uses each, and which can be used again for an equal beginning.

Pure bookkeeping over block numbers; the keys and values themselves lie in ``paged_attention.Pages``.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16


class Blocks:
    """``count`` blocks of BLOCK_TOKENS tokens. One that nobody uses keeps what it holds until it is needed.

    ``shared``: whether equal beginnings are found again at all.
    """

    def __init__(self, count: int, *, shared: bool) -> None:
        self.count = count
        self._shared = shared
        self._empty = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._content: dict[int, bytes] = {}  # of blocks that were read whole: what they hold, and all before it
        self._holding: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # what they hold can be used again; the oldest goes first

    @property
    def available(self) -> int:
        """How many can be taken."""
        return len(self._empty) + len(self._unused)

    def take(self) -> int:
        """A block for new keys and values. There must be one available."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._unused.popitem(last=False)
            del self._holding[self._content.pop(block)]
        self._users[block] = 1
        return block

    def find(self, contents: Sequence[bytes]) -> list[int]:
        """The blocks that hold the beginning of ``contents``, as many as there are; the caller now uses them."""
        found = []
        for content in contents:
            block = self._holding.get(content)
            if block is None:
                break
            self._unused.pop(block, None)
            self._users[block] += 1
            found.append(block)
        return found

    def holds(self, content: bytes) -> bool:
        """Whether some block holds it."""
        return content in self._holding

    def note(self, block: int, content: bytes) -> None:
        """Remember what a block holds that was read whole. Where another holds the same, that one is found."""
        if self._shared and content not in self._holding:
            self._content[block] = content
            self._holding[content] = block

    def forget(self, block: int) -> bool:
        """Let nobody find what a block holds, where it has one user; whether it has."""
        if self._users[block] > 1:
            return False
        if content := self._content.pop(block, None):
            del self._holding[content]
        return True

    def give_back(self, blocks: Sequence[int]) -> None:
        """The caller uses these blocks no more."""
        # From the end: the beginning of a prompt is what others have too, and goes last.
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._content:
                self._unused[block] = None
            else:
                self._empty.append(block)


def contents(salt: bytes, tokens: Sequence[int], before: Sequence[bytes] = ()) -> list[bytes]:
    """What each whole block of a text holds: a digest of its tokens and of all before them.

    Args:
        salt: whatever else keys and values depend on, which is the experts that the text is read with.
        before: what is known already of the same text's first blocks.
    """
    known = list(before)
    for start in range(len(known) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        digest = hashlib.blake2b(known[-1] if known else salt, digest_size=16)
        digest.update(b"".join(token.to_bytes(4, "little") for token in tokens[start : start + BLOCK_TOKENS]))
        known.append(digest.digest())
    return known
