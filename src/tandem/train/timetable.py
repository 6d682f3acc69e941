"""Which process passes which row through which stage, in what order: 1F1B and interleaved.

Stage s of S = P x C stages is on process s mod P, as its chunk s div P (Megatron's order). A tick
is one move of each process; what a move needs was made in an earlier tick.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """One pass of one row through one stage."""

    is_forward: bool
    stage: int
    row: int


Tick = tuple[Move | None, ...]
"""The move of every process, None where it waits."""


def timetable(
    num_processes: int, num_chunks: int, num_rows: int, *, trains: bool = True
) -> list[Tick]:
    """All ticks of a step; without `trains` there are forward passes only.

    A process goes backward whenever it can, and forward while it holds fewer passes than Megatron's
    warm-up has: P - rank with one chunk, 2 (P - rank - 1) + (C - 1) P + 1 with more. Where that
    brings everything to a halt (rows are not a multiple of P), any forward pass may go.
    """
    num_stages = num_processes * num_chunks
    ranks = range(num_processes)
    sizes = (num_processes, num_chunks, num_rows)
    forward = [_order(rank, *sizes, is_forward=True) for rank in ranks]
    backward = [_order(rank, *sizes, is_forward=False) if trains else deque() for rank in ranks]
    limits = [_limit(rank, num_processes, num_chunks) if trains else num_rows for rank in ranks]
    held, done, ticks = [0] * num_processes, set[Move](), list[Tick]()

    def can(move: Move) -> bool:
        return all(needed in done for needed in _needs(move, num_stages))

    def tick_of(may_start: Callable[[int], bool]) -> Tick:
        moves: list[Move | None] = []
        for rank in ranks:
            ready = [queue[0] for queue in (backward[rank], forward[rank]) if queue]
            allowed = (m for m in ready if can(m) and (not m.is_forward or may_start(rank)))
            moves.append(next(allowed, None))
        return tuple(moves)

    while any(forward) or any(backward):
        tick = tick_of(lambda rank: not trains or held[rank] < limits[rank])
        if not any(tick):
            tick = tick_of(lambda rank: True)
        assert any(tick), "every process waits for another"
        for rank, move in enumerate(tick):
            if move is not None:
                (forward if move.is_forward else backward)[rank].popleft()
                held[rank] += 1 if move.is_forward else -1
                done.add(move)
        ticks.append(tick)
    return ticks


def _order(
    rank: int, num_processes: int, num_chunks: int, num_rows: int, *, is_forward: bool
) -> deque[Move]:
    """The moves of one kind: rows in groups of P, each group through all chunks."""
    chunks = range(num_chunks) if is_forward else range(num_chunks - 1, -1, -1)
    return deque(
        Move(is_forward, chunk * num_processes + rank, row)
        for first in range(0, num_rows, num_processes)
        for chunk in chunks
        for row in range(first, min(first + num_processes, num_rows))
    )


def _limit(rank: int, num_processes: int, num_chunks: int) -> int:
    if num_chunks == 1:
        return num_processes - rank
    return 2 * (num_processes - rank - 1) + (num_chunks - 1) * num_processes + 1


def _needs(move: Move, num_stages: int) -> list[Move]:
    """The moves that must have been made before this one."""
    if move.is_forward:
        return [Move(True, move.stage - 1, move.row)] if move.stage else []
    needed = [Move(True, move.stage, move.row)]
    if move.stage < num_stages - 1:
        needed.append(Move(False, move.stage + 1, move.row))
    return needed
