"""Which sequences compute which tokens in a step, and where their keys and values lie.

What it decides is a function of the order of its calls alone: no clock, no random number.
"""

import bisect
from dataclasses import dataclass, field

import numpy as np

from tandem.engine.torch.blocks import BlockPool, Digest
from tandem.engine.torch.rows import Rows
from tandem.engine.torch.sequence import Sequence

VACANT_SHARE = 1 / 32
"""Share of the slots that are vacated before sequences that waited for slots are started, together:
a small model's prefill takes as long for one as for many, and longer than its step of decoding."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `stop` of a sequence, to be prefilled in this step.

    When they are its last, a token is drawn from the last one's logits for the sequence and for
    each of `forks`: sequences with the same tokens, which share the full blocks and get a copy of
    the unfinished one.
    """

    sequence: Sequence
    start: int
    stop: int
    forks: list[Sequence] = field(default_factory=list)

    @property
    def is_last(self) -> bool:
        return self.stop == self.sequence.num_tokens

    @property
    def drawers(self) -> list[Sequence]:
        """The sequences that draw a token after this chunk."""
        return [self.sequence, *self.forks] if self.is_last else []


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's work: prefill the chunks, copy blocks (from, to), decode the slots."""

    chunks: list[Chunk]
    copies: list[tuple[int, int]]
    decode_R: np.ndarray

    @property
    def is_empty(self) -> bool:
        return not self.chunks and not self.decode_R.size


class Scheduler:
    """Queues, slots and blocks of all live sequences.

    Decoding goes first; what blocks are left admit waiting sequences in order of arrival, several
    at once where they waited for slots. When a decoding sequence needs a block and none is left,
    the latest arrival among the running loses its own and waits again. The first arrival is never
    preempted by another and fits alone (the engine refuses what does not), so it always ends and
    every other one becomes first in time.
    """

    def __init__(self, pool: BlockPool, rows: Rows, block_size: int, prefill_tokens: int) -> None:
        self.pool, self.rows = pool, rows
        self.block_size, self.prefill_tokens = block_size, prefill_tokens
        self.waiting: list[Sequence] = []  # by arrival
        self.prefilling: list[Sequence] = []  # by arrival
        self._ranks: dict[str, tuple[int, int]] = {}  # group: (rank, live members)
        self.num_preempted = 0

    @property
    def num_running(self) -> int:
        return self.rows.num_slots - self.rows.num_vacant

    @property
    def has_work(self) -> bool:
        return bool(self.waiting) or self.num_running > 0

    def live(self) -> list[Sequence]:
        """Every sequence that has not ended, by arrival."""
        running = [sequence for sequence in self.rows.owner if sequence is not None]
        return sorted([*self.waiting, *running], key=_arrival)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        group = sequence.request.group
        if group is not None:
            rank, count = self._ranks.get(group, (sequence.arrival, 0))
            self._ranks[group] = rank, count + 1
        self._wait(sequence)

    def end(self, sequence: Sequence) -> None:
        """Takes a sequence out of wherever it is; it keeps what it wrote, and no block."""
        if sequence.slot >= 0:
            self._vacate(sequence)
        else:
            self.waiting.remove(sequence)
        group = sequence.request.group
        if group is not None:
            rank, count = self._ranks.pop(group)
            if count > 1:
                self._ranks[group] = rank, count - 1

    def forget(self) -> None:
        """Makes nothing of what is cached found again: other weights are in force."""
        self.pool.forget()
        for sequence in self.rows.owner:
            if sequence is not None:
                sequence.is_clean = False

    def num_blocks_wanted(self) -> int:
        """Blocks that decoding sequences need before they can draw again."""
        return int((self.rows.length_S[self.rows.decodable()] % self.block_size == 0).sum())

    def plan(self) -> Plan:
        """This step's work; the state is as if it were done already."""
        self._make_room()
        decode_R = self.rows.decodable()
        plan = Plan([], [], decode_R)
        budget = self.prefill_tokens
        for sequence in self.prefilling[:]:
            budget -= self._advance(sequence, budget, plan)
        num_together = min(int(VACANT_SHARE * self.rows.num_slots), len(self.waiting))
        if self.waiting and budget > 0 and self.rows.num_vacant >= num_together:
            self._admit(budget, plan)
        self.rows.length_S[decode_R] += 1
        self.rows.drawn_S[decode_R] += 1
        return plan

    def name_written(self, slots_R: np.ndarray) -> None:
        """Names the blocks that the newest tokens have filled, so that a later turn finds them."""
        rows = self.rows
        for slot in slots_R.tolist():
            sequence = rows.owner[slot]
            assert sequence is not None, f"slot {slot} is vacant"
            if not sequence.is_clean:
                continue
            # the newest token has no keys and values yet: it is the next step's input
            num_full = (sequence.num_tokens + int(rows.count_S[slot]) - 1) // self.block_size
            first = len(sequence.digests)
            sequence.extend_digests(num_full, rows.written(slot))
            for i in range(first, num_full):
                self.pool.name(sequence.blocks[i], sequence.digests[i])

    def _make_room(self) -> None:
        """Gives a block to each decoding sequence that needs one, at the cost of late arrivals."""
        rows = self.rows
        slots_R = rows.decodable()
        slots_R = slots_R[rows.length_S[slots_R] % self.block_size == 0]
        for slot in slots_R[np.argsort(rows.arrival_S[slots_R])].tolist():
            # a sequence that was preempted a moment ago needs none
            while self.pool.num_available == 0 and rows.owner[slot] is not None:
                self._preempt()
            if rows.owner[slot] is not None:
                rows.add_block(slot, self.pool.take(1)[0])

    def _preempt(self) -> None:
        running = [sequence for sequence in self.rows.owner if sequence is not None]
        last = max(running, key=_arrival)
        self.num_preempted += 1
        self._vacate(last)
        self._wait(last)

    def _admit(self, budget: int, plan: Plan) -> None:
        """Starts waiting sequences while slots, blocks and the budget last."""
        coming = self._coming()
        for sequence in self.waiting[:]:
            if budget <= 0 or not self.rows.num_vacant:
                return
            if sequence.slot >= 0:  # it was forked off one before it
                continue
            # of the last token the logits are wanted, so it is always computed
            findable = sequence.digests[: (sequence.num_tokens - 1) // self.block_size]
            found = self.pool.find(findable)
            if len(found) < len(findable) and findable[len(found)] in coming:
                continue
            num_new = -(-sequence.num_tokens // self.block_size) - len(found)
            if not self._has_room(num_new + self.pool.num_idle_of(found)):
                return
            self.pool.share(found)
            self._start(sequence, found + self.pool.take(num_new), len(found) * self.block_size)
            self.prefilling.append(sequence)
            budget -= self._advance(sequence, budget, plan)
            coming = self._coming()

    def _coming(self) -> set[Digest]:
        """Digests of blocks that are not computed yet and will be by what runs now."""
        return {
            digest
            for sequence in self.prefilling
            if sequence.is_clean
            for digest in sequence.digests[sequence.num_planned // self.block_size :]
        }

    def _has_room(self, num_blocks: int) -> bool:
        """Whether `num_blocks` can go to a new sequence: each running one should be able to grow
        by a block, else it would be preempted soon."""
        return num_blocks + self.num_running <= self.pool.num_available

    def _start(self, sequence: Sequence, blocks: list[int], num_cached: int) -> None:
        self.waiting.remove(sequence)
        sequence.blocks = blocks
        sequence.num_planned = num_cached
        sequence.is_clean = True
        if not sequence.was_started:
            sequence.was_started = True
            sequence.num_cached = num_cached
        group = sequence.request.group
        self.rows.enter(sequence, sequence.arrival if group is None else self._ranks[group][0])

    def _advance(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        """Plans the next chunk of a prefilling sequence; returns its tokens."""
        start = sequence.num_planned
        stop = min(sequence.num_tokens, start + budget)
        if stop == start:
            return 0
        chunk = Chunk(sequence, start, stop)
        plan.chunks.append(chunk)
        sequence.num_planned = stop
        if sequence.is_clean:
            # found already in this step: a layer writes all keys and values before it reads any
            for i in range(start // self.block_size, stop // self.block_size):
                self.pool.name(sequence.blocks[i], sequence.digests[i])
        if chunk.is_last:
            self.prefilling.remove(sequence)
            self._fork(chunk, plan)
            for drawer in chunk.drawers:
                self.rows.length_S[drawer.slot] = drawer.num_tokens
                self.rows.drawn_S[drawer.slot] = 1
                self.rows.is_decoding_S[drawer.slot] = True
        return stop - start

    def _fork(self, chunk: Chunk, plan: Plan) -> None:
        """Starts the waiting sequences that have the very tokens this chunk ends."""
        leader = chunk.sequence
        if not leader.is_clean:
            return
        num_full, tail = divmod(leader.num_tokens, self.block_size)
        num_new = 1 if tail else 0
        for sequence in [other for other in self.waiting if other.content == leader.content]:
            if not self.rows.num_vacant or not self._has_room(num_new):
                return
            shared = leader.blocks[:num_full]
            self.pool.share(shared)
            own = self.pool.take(num_new)
            plan.copies.extend((leader.blocks[num_full], block) for block in own)
            self._start(sequence, shared + own, sequence.num_tokens)
            chunk.forks.append(sequence)

    def _wait(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=_arrival)

    def _vacate(self, sequence: Sequence) -> None:
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        self.rows.leave(sequence)
        self.pool.give(sequence.blocks)
        sequence.blocks = []
        sequence.num_planned = 0


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
