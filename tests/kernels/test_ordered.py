"""A token's bits are the same in training, prefill and decode; all of it on CUDA, in bf16."""

import pytest
import torch

from tandem.kernels.attention import Keys, packed_attention
from tandem.kernels.grouped import grouped_paged_attention
from tandem.kernels.paged import paged_attention, paged_prefill_attention, write_cache

BLOCK, HEADS, KEY_HEADS, SIZE = 16, 8, 2, 128
LENGTHS = [1, 300, 64, 129, 2048, 2049, 5000]


@pytest.fixture(autouse=True, params=[pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    with torch.device(request.param):
        yield torch.device(request.param)


@pytest.fixture
def packed(device):
    total = sum(LENGTHS)
    inputs = [torch.randn(total, n, SIZE).bfloat16() for n in (HEADS, KEY_HEADS, KEY_HEADS)]
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return (*inputs, bounds, max(LENGTHS))


@pytest.fixture
def paged(packed):
    """The caches, the table and the lengths of the same sequences; blocks lie in any order."""
    _, k, v, bounds, _ = packed
    blocks = [-(-length // BLOCK) for length in LENGTHS]
    free = torch.randperm(sum(blocks), device="cpu").tolist()
    table = torch.zeros(len(LENGTHS), max(blocks), dtype=torch.int32, device="cpu")
    for row, count in enumerate(blocks):
        for column in range(count):
            table[row, column] = free.pop()
    table = table.to(k.device)
    caches = [torch.zeros(sum(blocks), BLOCK, KEY_HEADS, SIZE).bfloat16() for _ in range(2)]
    for row, length in enumerate(LENGTHS):
        place = torch.arange(length)
        slots = table[row].long()[place // BLOCK] * BLOCK + place % BLOCK
        tokens = slice(int(bounds[row]), int(bounds[row + 1]))
        write_cache(k[tokens], v[tokens], *caches, slots)
    return caches, table, torch.tensor(LENGTHS, dtype=torch.int32)


def _suffixes(packed):
    """The last queries of every sequence, some or all, and their bounds."""
    q, _, _, bounds, _ = packed
    counts = [1, 70, 64, 100, 2048, 3, 3000]
    places = [
        torch.arange(int(end) - count, int(end))
        for end, count in zip(bounds[1:], counts, strict=True)
    ]
    query_bounds = torch.tensor([0, *counts]).cumsum(0).int()
    return q[torch.cat(places)], torch.cat(places), query_bounds, max(counts)


def test_packed_attention_and_its_gradients_are_those_of_fp32(packed):
    *inputs, bounds, longest = packed
    ours = [x.clone().requires_grad_() for x in inputs]
    found = packed_attention(*ours, bounds, longest)
    grad = torch.randn_like(found)
    theirs = [x.float().cpu().requires_grad_() for x in inputs]
    wanted = packed_attention(*theirs, bounds.cpu(), longest)
    pairs = [(found, wanted)]
    pairs += zip(
        torch.autograd.grad(found, ours, grad),
        torch.autograd.grad(wanted, theirs, grad.float().cpu()),
        strict=True,
    )
    for a, b in pairs:
        assert float((a.float().cpu() - b).abs().max() / b.abs().max()) < 0.02


def test_a_sequence_has_the_same_bits_alone_and_with_fewer_queries(packed):
    *inputs, bounds, longest = packed
    whole = packed_attention(*inputs, bounds, longest)
    for row, length in enumerate(LENGTHS):
        tokens = slice(int(bounds[row]), int(bounds[row + 1]))
        alone = packed_attention(
            *(x[tokens] for x in inputs), torch.tensor([0, length]).int(), length
        )
        assert torch.equal(alone, whole[tokens]), length
    q, places, query_bounds, most = _suffixes(packed)
    last = packed_attention(q, *inputs[1:], query_bounds, most, keys=Keys(bounds, longest))
    assert torch.equal(last, whole[places])


def test_prefill_and_decode_have_the_bits_of_the_packed_forward(packed, paged):
    whole, (caches, table, lengths_R) = packed_attention(*packed), paged
    q, places, query_bounds, most = _suffixes(packed)
    found = paged_prefill_attention(q, *caches, query_bounds, table, lengths_R, most)
    assert torch.equal(found, whole[places])
    last = packed[3][1:].long() - 1
    decoded = paged_attention(packed[0][last], *caches, table, lengths_R)
    assert torch.equal(decoded, whole[last])
    many = [x.repeat(60, *[1] * (x.dim() - 1)) for x in (packed[0][last], table, lengths_R)]
    again = paged_attention(many[0], *caches, *many[1:])  # no program shares a row with another
    assert torch.equal(again, whole[last].repeat(60, 1, 1))


@pytest.mark.parametrize("prefix", [0, 64, 2048, 2112, 4992])
def test_what_is_shared_changes_no_bit(packed, paged, prefix):
    caches, table, _ = paged
    rows = 3  # of the longest sequence, and one that shares nothing
    q = torch.randn(rows + 1, HEADS, SIZE).bfloat16()
    tables = torch.cat([table[-1:]] * rows + [table[-2:-1]])
    lengths = torch.tensor([LENGTHS[-1]] * rows + [LENGTHS[-2]], dtype=torch.int32)
    wanted = paged_attention(q, *caches, tables, lengths)
    start, width = prefix // BLOCK, table.shape[1]
    suffixes = torch.zeros_like(tables)
    suffixes[:rows, : width - start] = tables[:rows, start:]
    suffixes[rows] = tables[rows]
    found = grouped_paged_attention(
        q,
        *caches,
        tables[[0, rows], : max(1, start)].contiguous(),
        torch.tensor([prefix, 0]).int(),
        torch.tensor([0, rows, rows + 1]).int(),
        suffixes,
        lengths - torch.tensor([prefix] * rows + [0]).int(),
    )
    assert torch.equal(found, wanted)
