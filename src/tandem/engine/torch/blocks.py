"""The blocks of a paged cache: who holds them, what they contain, which may be taken again.

A block is *free* (empty), *held* (by one or more sequences) or *idle* (held by nobody, but its
contents are known and may be wanted again). A full block is known by a digest of every token up to
its end, so equal digests mean equal keys and values.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

Digest = bytes
_ROOT: Digest = b""


def chain(tokens_T: np.ndarray, block_size: int, known: Sequence[Digest] = ()) -> list[Digest]:
    """The digests of all full blocks of a sequence; `known` are those of its first blocks.

    Each digest covers its parent's, so it names the whole sequence up to the block's end. The
    weights are not in it: whoever changes them has the pool forget everything.
    """
    digests = list(known)
    tokens_T = np.ascontiguousarray(tokens_T, dtype=np.int32)
    for start in range(len(digests) * block_size, len(tokens_T) - block_size + 1, block_size):
        parent = digests[-1] if digests else _ROOT
        digests.append(_digest(parent, tokens_T[start : start + block_size]))
    return digests


def content(tokens_T: np.ndarray, block_size: int, full: Sequence[Digest]) -> Digest:
    """The digest of a whole sequence, its unfinished last block included."""
    parent = full[-1] if full else _ROOT
    tail_T = np.ascontiguousarray(tokens_T[len(full) * block_size :], dtype=np.int32)
    return _digest(parent, tail_T) + b"tail"  # never equal to the digest of a full block


def _digest(parent: Digest, tokens_T: np.ndarray) -> Digest:
    return hashlib.blake2b(parent + tokens_T.tobytes(), digest_size=16).digest()


class BlockPool:
    """Counts the holders of every block and remembers the contents of full ones.

    Idle blocks are taken again, longest unused first, when no block is free. What it does is a
    function of the calls alone; after `forget` with nothing held, it is as new.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0, "a cache without blocks"
        self.num_blocks = num_blocks
        self._holders_B = np.zeros(num_blocks, dtype=np.int32)
        self._digest_of: dict[int, Digest] = {}
        self._block_of: dict[Digest, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._free: list[int] = []
        self._refill()

    @property
    def num_available(self) -> int:
        """Blocks that `take` can give: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def take(self, count: int) -> list[int]:
        """`count` blocks with one holder each and unknown contents."""
        assert count <= self.num_available, f"{count} blocks wanted, {self.num_available} are left"
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._unname(block)
            self._holders_B[block] = 1
            taken.append(block)
        return taken

    def find(self, digests: Sequence[Digest]) -> list[int]:
        """The blocks of the longest run of `digests`, from the first on, that is known."""
        found = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def num_idle_of(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: sharing them takes them from the available ones."""
        return sum(block in self._idle for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of `blocks`, which are held or idle."""
        for block in blocks:
            if self._holders_B[block] == 0:
                assert block in self._idle, f"block {block} is shared but free"
                del self._idle[block]
            self._holders_B[block] += 1

    def give(self, blocks: Sequence[int]) -> None:
        """One holder less for each block of a sequence; its last blocks are taken again first."""
        for block in reversed(blocks):
            assert self._holders_B[block] > 0, f"block {block} is given back twice"
            self._holders_B[block] -= 1
            if self._holders_B[block]:
                continue
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def name(self, block: int, digest: Digest) -> None:
        """Remembers the contents of a held, full block; the first block of a digest keeps it."""
        assert self._holders_B[block] > 0, f"block {block} is named but not held"
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def forget(self) -> None:
        """Forgets all contents; idle blocks become free."""
        self._block_of.clear()
        self._digest_of.clear()
        self._free.extend(self._idle)
        self._idle.clear()
        if len(self._free) == self.num_blocks:
            self._refill()

    def _refill(self) -> None:
        self._free = list(range(self.num_blocks - 1, -1, -1))

    def _unname(self, block: int) -> None:
        del self._block_of[self._digest_of.pop(block)]
