"""Numbers split into parts of nearly equal sums (Karmarkar and Karp, 1982)."""

import heapq
from collections.abc import Sequence

Part = tuple[float, int, tuple[int, ...]]
"""Sum, size and items of one part; parts are compared in that order."""

State = tuple[Part, ...]
"""A partial solution: its parts, largest first."""


def partition(costs: Sequence[float], count: int) -> list[list[int]]:
    """`count` parts of the items (by place, in order) with nearly equal sums of costs."""
    order = sorted(range(len(costs)), key=lambda item: (costs[item], item))
    return _solve([_state([[item]], costs, count) for item in order], count)


def even_partition(costs: Sequence[float], count: int) -> list[list[int]]:
    """The same, with equally many items in every part."""
    assert len(costs) % count == 0, f"{len(costs)} items do not make {count} parts of one size"
    order = sorted(range(len(costs)), key=lambda item: (costs[item], item))
    runs = [order[first : first + count] for first in range(0, len(order), count)]
    return _solve([_state([[item] for item in run], costs, count) for run in runs], count)


def _state(parts: Sequence[Sequence[int]], costs: Sequence[float], count: int) -> State:
    filled = [(sum(costs[i] for i in part), len(part), tuple(part)) for part in parts]
    empty: list[Part] = [(0.0, 0, ())] * (count - len(filled))
    return tuple(sorted(filled + empty, reverse=True))


def _solve(states: Sequence[State], count: int) -> list[list[int]]:
    """Merges the two states of largest spread until one is left."""
    if not states:
        return [[] for _ in range(count)]
    # a heap gives the smallest: so minus the spread; among equals the older state
    heap = [(-_spread(state), number, state) for number, state in enumerate(states)]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        merged = _merge(heapq.heappop(heap)[2], heapq.heappop(heap)[2])
        heapq.heappush(heap, (-_spread(merged), number, merged))
        number += 1
    return [sorted(items) for _, _, items in heap[0][2]]


def _spread(state: State) -> float:
    return state[0][0] - state[-1][0]


def _merge(one: State, other: State) -> State:
    """The largest part of one joins the smallest of the other, and so on."""
    pairs = zip(one, reversed(other), strict=True)
    parts = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]
    return tuple(sorted(parts, reverse=True))
