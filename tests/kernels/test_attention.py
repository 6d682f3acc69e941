import pytest
import torch

from tandem.kernels.attention import packed_attention
from tandem.kernels.grouped import grouped_paged_attention
from tandem.kernels.paged import paged_attention, paged_prefill_attention, write_cache

BLOCK, HEADS, KEY_HEADS, SIZE = 16, 6, 2, 8


def _random(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return x.to(torch.get_default_device())


def _plain(q, k, v, scale=None):
    """Attention of the last queries over all keys, causal, in the open."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qnh,knh->nqk", q, k) * scale
    place = torch.arange(len(k) - len(q), len(k))[:, None]
    scores = scores.masked_fill(torch.arange(len(k)) > place, float("-inf"))
    return torch.einsum("nqk,knh->qnh", scores.softmax(-1), v)


def _packed(lengths, seed=0):
    total = sum(lengths)
    qkv = [_random(total, n, SIZE, seed=seed + n) for n in (HEADS, KEY_HEADS)]
    qkv.append(_random(total, KEY_HEADS, SIZE, seed=seed + 99))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return [x.requires_grad_() for x in qkv], bounds


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [7, 3, 7, 1, 12], [1, 2, 2, 3]])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_packed_attention_is_causal_attention_of_each_sequence(lengths, scale):
    (q, k, v), bounds = _packed(lengths)
    found = packed_attention(q, k, v, bounds, max(lengths), scale)
    wanted = torch.cat(
        [
            _plain(q[a:b], k[a:b], v[a:b], scale)
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(found, wanted)
    grad = _random(*found.shape, seed=5)
    one = torch.autograd.grad(found, (q, k, v), grad)
    two = torch.autograd.grad(wanted, (q, k, v), grad)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_sequence_gets_the_same_bits_in_every_row_it_is_packed_into():
    (q, k, v), bounds = _packed([7, 30, 7, 2])
    whole = packed_attention(q, k, v, bounds, 30)
    alone = packed_attention(q[7:37], k[7:37], v[7:37], torch.tensor([0, 30]).int(), 30)
    assert torch.equal(whole[7:37], alone)


def _paged(lengths, seed=0, spare=3):
    """A cache filled by write_cache with sequences whose blocks are shuffled."""
    blocks = [-(-length // BLOCK) for length in lengths]
    num_blocks = sum(blocks) + spare
    free = torch.randperm(
        num_blocks, generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
    ).tolist()
    table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    caches = [torch.full((num_blocks, BLOCK, KEY_HEADS, SIZE), 7.0) for _ in range(2)]
    keys, values = [], []
    for row, length in enumerate(lengths):
        for column in range(blocks[row]):
            table[row, column] = free.pop()
        keys.append(_random(length, KEY_HEADS, SIZE, seed=seed + 10 * row + 1))
        values.append(_random(length, KEY_HEADS, SIZE, seed=seed + 10 * row + 2))
        place = torch.arange(length)
        slots = table[row].long()[place // BLOCK] * BLOCK + place % BLOCK
        write_cache(keys[-1], values[-1], *caches, slots)
    return keys, values, caches, table, torch.tensor(lengths, dtype=torch.int32)


def test_write_cache_leaves_other_slots_and_negative_slots_alone():
    caches = [torch.zeros(3, BLOCK, KEY_HEADS, SIZE) for _ in range(2)]
    k, v = _random(3, KEY_HEADS, SIZE), _random(3, KEY_HEADS, SIZE, seed=1)
    write_cache(k, v, *caches, torch.tensor([9, -1, 2]))
    for cache, x in zip(caches, (k, v), strict=True):
        flat = cache.flatten(0, 1)
        assert torch.equal(flat[9], x[0])
        assert torch.equal(flat[2], x[2])
        flat[9] = flat[2] = 0
        assert not flat.any()


@pytest.mark.parametrize("scale", [None, 0.3])
def test_paged_attention_reads_the_rows_own_tokens(scale):
    lengths = [5, 1, 33, 17, 4, 6]
    keys, values, caches, table, lengths_R = _paged(lengths)
    q = _random(len(lengths), HEADS, SIZE, seed=77)
    found = paged_attention(q, *caches, table, lengths_R, scale)
    for row in range(len(lengths)):
        wanted = _plain(q[row : row + 1], keys[row], values[row], scale)[0]
        torch.testing.assert_close(found[row], wanted)


def test_paged_attention_of_a_row_does_not_depend_on_the_others():
    lengths = [5, 1, 33, 17, 4, 6, 30, 31]
    _, _, caches, table, lengths_R = _paged(lengths)
    q = _random(len(lengths), HEADS, SIZE, seed=77)
    whole = paged_attention(q, *caches, table, lengths_R)
    for rows in ([2], [6, 7], [7, 6, 0, 3]):
        found = paged_attention(q[rows], *caches, table[rows], lengths_R[rows])
        assert torch.equal(found, whole[rows])


def test_paged_attention_of_an_empty_row_is_zero():
    _, _, caches, table, lengths_R = _paged([5, 3])
    lengths_R[1] = 0
    found = paged_attention(_random(2, HEADS, SIZE), *caches, table, lengths_R)
    assert not found[1].any()
    assert found[0].any()


def test_paged_prefill_attention_continues_what_is_cached():
    lengths, new = [9, 6, 6, 12, 1], [9, 2, 2, 5, 1]
    keys, values, caches, table, lengths_R = _paged(lengths)
    q = _random(sum(new), HEADS, SIZE, seed=77)
    bounds = torch.tensor([0, *new]).cumsum(0).int()
    found = paged_prefill_attention(q, *caches, bounds, table, lengths_R, max(new))
    for row in range(len(lengths)):
        rows = slice(int(bounds[row]), int(bounds[row + 1]))
        torch.testing.assert_close(found[rows], _plain(q[rows], keys[row], values[row]))


@pytest.mark.parametrize("scale", [None, 0.3])
def test_grouped_paged_attention_equals_attention_over_prefix_and_suffix(scale):
    prefixes, sizes, suffixes = [8, 0, 4, 12], [3, 1, 2, 0], [5, 1, 9, 2, 3, 17]
    keys, values, caches, table, _ = _paged([length or 1 for length in prefixes] + suffixes)
    q = _random(sum(sizes), HEADS, SIZE, seed=77)
    found = grouped_paged_attention(
        q,
        *caches,
        table[:4],
        torch.tensor(prefixes).int(),
        torch.tensor([0, *sizes]).cumsum(0).int(),
        table[4:],
        torch.tensor(suffixes).int(),
        scale,
    )
    groups = torch.arange(4).repeat_interleave(torch.tensor(sizes)).tolist()
    for row, group in enumerate(groups):
        k = torch.cat([keys[group][: prefixes[group]], keys[4 + row]])
        v = torch.cat([values[group][: prefixes[group]], values[4 + row]])
        torch.testing.assert_close(found[row], _plain(q[row : row + 1], k, v, scale)[0])


def test_grouped_paged_attention_of_a_row_with_nothing_to_see_is_zero():
    _, _, caches, table, _ = _paged([4, 3, 2])
    found = grouped_paged_attention(
        _random(2, HEADS, SIZE),
        *caches,
        table[:1],
        torch.tensor([0]).int(),
        torch.tensor([0, 2]).int(),
        table[1:],
        torch.tensor([3, 0]).int(),
    )
    assert not found[1].any()
    assert found.isfinite().all()


def test_grouped_paged_attention_of_a_row_does_not_depend_on_the_size_of_its_group():
    rows = 6
    _, _, caches, table, _ = _paged([24, *[9] * rows])
    q = _random(rows, HEADS, SIZE, seed=77)

    def attend(size):
        return grouped_paged_attention(
            q[:size],
            *caches,
            table[:1],
            torch.tensor([24]).int(),
            torch.tensor([0, size]).int(),
            table[1 : 1 + size],
            torch.tensor([9, 3, 5, 1, 7, 2][:size]).int(),
        )

    whole = attend(rows)
    for size in range(1, rows):
        assert torch.equal(attend(size), whole[:size]), size
