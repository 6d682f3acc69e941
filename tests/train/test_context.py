"""Chunks of a row, each attending to its slice of the keys, are the row's own attention."""

import pytest
import torch

from tandem.kernels.attention import packed_attention
from tandem.parallel import Axis
from tandem.train.context import chunks_of, in_row_order, own_tokens


@pytest.mark.parametrize("lengths", [[24], [5, 7, 12], [1, 1, 1, 21], [13, 11], [6, 6, 6, 6]])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_attend_to_what_they_would_see_in_the_whole_row(lengths, size):
    generator = torch.Generator().manual_seed(sum(lengths) + size)
    q, k, v = (torch.randn(24, heads, 8, generator=generator) for heads in (4, 2, 2))
    bounds_S = torch.tensor([0, *lengths]).cumsum(0).int()
    whole = packed_attention(q, k, v, bounds_S, max(lengths))
    parts = []
    for rank in range(size):
        chunks = chunks_of(bounds_S, Axis(rank=rank, size=size))
        for chunk in chunks:
            seen = slice(chunk.first_key, chunk.end)
            bounds, longest = chunk.bounds_S, chunk.longest
            queries = q[chunk.start : chunk.end]
            out = packed_attention(queries, k[seen], v[seen], bounds, longest, keys=chunk.keys)
            parts.append(out)
    found = in_row_order(torch.cat(parts), Axis(size=size))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_every_token_is_one_process_and_comes_back_to_its_place():
    row_T, bounds_S = torch.arange(24), torch.tensor([0, 24]).int()
    axes = [Axis(rank=rank, size=3) for rank in range(3)]
    own = [own_tokens(row_T, chunks_of(bounds_S, axis)) for axis in axes]
    assert own[0].tolist() == [0, 1, 2, 3, 20, 21, 22, 23]
    assert torch.equal(in_row_order(torch.cat(own), axes[0]), row_T)


def test_the_causal_triangle_is_shared_evenly():
    bounds_S = torch.tensor([0, 32]).int()
    work = [
        sum(place + 1 for place in own_tokens(torch.arange(32), chunks_of(bounds_S, axis)).tolist())
        for axis in (Axis(rank=rank, size=4) for rank in range(4))
    ]
    assert len(set(work)) == 1
