"""Which sample goes into which optimizer step, packed row and rank: a pure function of lengths."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.config import BatchConfig
from tandem.errors import ConfigError
from tandem.packing.partition import even_partition, partition

Row = tuple[int, ...]
"""The samples of one packed row, by their place in the list that was planned."""


class Layout(Protocol):
    """What packing must know of the place it packs for."""

    @property
    def data_rank(self) -> int | None:
        """None: all ranks, those of rank 0 first."""

    @property
    def data_size(self) -> int: ...
    @property
    def context_size(self) -> int: ...
    @property
    def row_multiple(self) -> int:
        """Tokens; every row is padded to a multiple of it."""

    @property
    def sequence_cost(self) -> Callable[[int], float]:
        """The work of a sequence of that many tokens, for balance; any unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step: its samples, and the rows of every data rank (as many on each)."""

    samples: Row
    ranks: tuple[tuple[Row, ...], ...]

    def rows(self, data_rank: int | None) -> tuple[Row, ...]:
        """The rows of one data rank, or of all, one rank after the other."""
        return sum(self.ranks, ()) if data_rank is None else self.ranks[data_rank]


def plan(
    lengths: Sequence[int],
    rollouts: Sequence[int],
    is_trained: Sequence[bool],
    layout: Layout,
    cfg: BatchConfig,
) -> tuple[Step, ...]:
    """The optimizer steps of one rollout, with the rows that each data rank runs.

    Entry i of `lengths` (tokens), `rollouts` (the attempt it belongs to) and `is_trained` is
    sample i. Samples that are not trained belong to their step and to no row. A row may be empty:
    then a rank has nothing left to do while another has.
    """
    steps = []
    for samples in split_steps(rollouts, cfg.global_batch_size):
        trained = [sample for sample in samples if is_trained[sample]]
        rows = fill_rows(lengths, trained, layout, cfg)
        ranks = distribute(rows, lengths, layout, balances=cfg.balance_data)
        steps.append(Step(samples=tuple(samples), ranks=ranks))
    return tuple(steps)


def split_steps(rollouts: Sequence[int], global_batch_size: int | None) -> list[list[int]]:
    """The samples of each optimizer step, whole rollouts in order of first appearance.

    A step takes `global_batch_size` rollouts (None: all of them). Rollouts that would not fill
    another step join the last one: nothing is dropped.
    """
    members: dict[int, list[int]] = {}
    for sample, rollout in enumerate(rollouts):
        members.setdefault(rollout, []).append(sample)
    order = list(members.values())
    size = len(order) if global_batch_size is None else global_batch_size
    num_steps = max(1, len(order) // size) if order else 0
    bounds = [step * size for step in range(num_steps)] + [len(order)]
    return [
        [sample for rollout in order[first:last] for sample in rollout]
        for first, last in itertools.pairwise(bounds)
    ]


def fill_rows(
    lengths: Sequence[int], samples: Sequence[int], layout: Layout, cfg: BatchConfig
) -> list[Row]:
    """The rows of a step: at least one for each data rank and a multiple of their number."""
    if not cfg.use_dynamic_batch_size:
        rows = [
            list(samples[first : first + cfg.micro_batch_size])
            for first in range(0, len(samples), cfg.micro_batch_size)
        ]
    else:
        if cfg.max_tokens_per_gpu is None:
            raise ConfigError(
                "--use-dynamic-batch-size was given without --max-tokens-per-gpu; "
                "set it to the tokens that one packed row may hold"
            )
        budget = cfg.max_tokens_per_gpu * layout.context_size
        if cfg.balance_by_flops:
            rows = _rows_by_cost(lengths, samples, budget, layout.sequence_cost)
        else:
            rows = first_fit(lengths, samples, budget)
    wanted = max(1, -(-len(rows) // layout.data_size)) * layout.data_size
    if cfg.use_dynamic_batch_size and cfg.balance_data and layout.data_size > 1:
        even = _even_rows(lengths, samples, wanted, layout.sequence_cost)
        if all(sum(lengths[sample] for sample in row) <= budget for row in even if len(row) > 1):
            return even
    return [tuple(row) for row in split_rows(rows, lengths, wanted)]


def first_fit(lengths: Sequence[int], samples: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of at most `budget` tokens; each sample joins the first row that has room.

    A sample longer than the budget gets a row of its own and is never cut.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in samples:
        length = lengths[sample]
        place = next((row for row, free in enumerate(room) if free >= length), None)
        if place is None:
            rows.append([sample])
            room.append(budget - length)
        else:
            rows[place].append(sample)
            room[place] -= length
    return rows


def split_rows(rows: list[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` rows: the longest row of several samples is halved until there are enough.

    Ties go to the later row. Halves are filled longest sample first, each into the lighter half.
    Where no row can be halved, empty rows make up the number.
    """
    rows = [list(row) for row in rows]
    while len(rows) < count:
        loads = [sum(lengths[sample] for sample in row) for row in rows]
        splittable = [place for place, row in enumerate(rows) if len(row) > 1]
        if not splittable:
            return rows + [[] for _ in range(count - len(rows))]
        place = max(splittable, key=lambda place: (loads[place], place))
        left: list[int] = []
        right: list[int] = []
        left_load = right_load = 0
        for sample in sorted(rows[place], key=lambda sample: -lengths[sample]):
            if left_load <= right_load:
                left.append(sample)
                left_load += lengths[sample]
            else:
                right.append(sample)
                right_load += lengths[sample]
        rows[place] = left
        rows.append(right)
    return rows


def distribute(
    rows: Sequence[Row], lengths: Sequence[int], layout: Layout, *, balances: bool
) -> tuple[tuple[Row, ...], ...]:
    """The rows of each data rank: strided, or evened out by cost; as many on each rank."""
    size = layout.data_size
    assert len(rows) % size == 0, f"{len(rows)} rows do not divide over {size} data ranks"
    if balances and size > 1:
        costs = [sum(layout.sequence_cost(lengths[sample]) for sample in row) for row in rows]
        places = even_partition(costs, size)
    else:
        places = [list(range(rank, len(rows), size)) for rank in range(size)]
    return tuple(tuple(rows[place] for place in rank) for rank in places)


def _even_rows(
    lengths: Sequence[int], samples: Sequence[int], count: int, cost: Callable[[int], float]
) -> list[Row]:
    """`count` rows of even cost: of full rows and a rest, few to a rank, no share is even."""
    parts = partition([cost(lengths[sample]) for sample in samples], count)
    return [tuple(samples[place] for place in part) for part in parts]


def _rows_by_cost(
    lengths: Sequence[int], samples: Sequence[int], budget: int, cost: Callable[[int], float]
) -> list[list[int]]:
    """As many rows as the tokens need, of even cost; the budget is a mean, not a bound."""
    count = -(-sum(lengths[sample] for sample in samples) // budget)
    if count >= len(samples):
        return [[sample] for sample in samples]
    parts = partition([cost(lengths[sample]) for sample in samples], count)
    return [[samples[place] for place in part] for part in parts if part]
