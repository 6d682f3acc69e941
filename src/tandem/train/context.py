"""A packed row that several processes share: which tokens are whose, and what they attend to.

The row is cut into 2 C equal chunks for C processes; process r has chunks r and 2 C - 1 - r, so
that all have as much of the causal triangle. Keys and values are gathered, so a chunk's queries
see one contiguous slice of the row: from where its first sequence begins to its own end.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.contracts import Attend
from tandem.kernels.attention import Keys, packed_attention
from tandem.parallel import Axis
from tandem.parallel.collectives import gather_rows


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring tokens of a row, and the keys that they see."""

    start: int
    end: int
    first_key: int  # of the row; the last one is the chunk's last token
    bounds_S: Tensor  # int32, cumulative lengths of the chunk's sequences
    longest: int
    keys: Keys


def chunks_of(bounds_S: Tensor, axis: Axis) -> tuple[Chunk, Chunk]:
    """This process's two chunks of the row with these bounds (on the CPU)."""
    bounds = bounds_S.tolist()
    count = 2 * axis.size
    assert bounds[-1] % count == 0, f"a row of {bounds[-1]} tokens does not make {count} chunks"
    size = bounds[-1] // count
    first, second = (
        _chunk(bounds, place * size, (place + 1) * size)
        for place in (axis.rank, count - 1 - axis.rank)
    )
    return first, second


def own_tokens(x_T: Tensor, chunks: tuple[Chunk, Chunk]) -> Tensor:
    """This process's entries of a column of the row."""
    return torch.cat([x_T[chunk.start : chunk.end] for chunk in chunks])


def in_row_order(gathered: Tensor, axis: Axis) -> Tensor:
    """What all processes have of a row, one process behind the other, as the row has it."""
    pairs = gathered.unflatten(0, (axis.size, 2, -1))
    return torch.cat([pairs[:, 0], pairs[:, 1].flip(0)]).flatten(0, 1)


def attention_over(chunks: tuple[Chunk, Chunk], device: torch.device, axis: Axis) -> Attend:
    """Attention of this process's queries to the keys of the whole row."""
    moved = [(chunk, *_on(chunk, device)) for chunk in chunks]

    def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, /) -> Tensor:
        both = in_row_order(gather_rows(torch.cat([k_TKH, v_TKH], dim=1), axis), axis)
        k, v = both.chunk(2, dim=1)
        parts = []
        for (chunk, bounds_S, keys), q in zip(moved, q_TNH.chunk(2), strict=True):
            seen = slice(chunk.first_key, chunk.end)
            parts.append(packed_attention(q, k[seen], v[seen], bounds_S, chunk.longest, keys=keys))
        return torch.cat(parts)

    return attend


def _chunk(bounds: list[int], start: int, end: int) -> Chunk:
    spans = [
        (first, min(last, end))
        for first, last in itertools.pairwise(bounds)
        if first < end and last > start and first < last
    ]
    queries = [last - max(first, start) for first, last in spans]
    keys = [last - first for first, last in spans]
    return Chunk(
        start=start,
        end=end,
        first_key=spans[0][0],
        bounds_S=_cumulative(queries),
        longest=max(queries),
        keys=Keys(_cumulative(keys), max(keys)),
    )


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _on(chunk: Chunk, device: torch.device) -> tuple[Tensor, Keys]:
    keys_S = chunk.keys.bounds_S.to(device, non_blocking=True)
    return chunk.bounds_S.to(device, non_blocking=True), Keys(keys_S, chunk.keys.longest)
