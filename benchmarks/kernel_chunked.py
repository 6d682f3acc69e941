"""A candidate for decode attention, measured beside `kernels/cuda/decode.py`; one of them stays.

Decode is bound by reading keys and values. Work is cut into chunks of a fixed number of tokens, so
that the bits of a row depend on the row alone; a fixed number of programs walks over (sequence,
chunk, key head), so a launch fits any lengths and can be captured in a CUDA graph. A chunk leaves
a partial result and its log-sum-exp; a second kernel merges them.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.device import num_programs

_LOG2_E = tl.constexpr(1.4426950408889634)
_MAX_SLOTS = 16  # partial results a row: bounds the memory they take


class Tiling(NamedTuple):
    """How a decode kernel is cut; measured by `benchmarks/kernels.py --sweep`."""

    chunk: int = 512  # tokens of a partial result
    tile: int = 64  # tokens of a step, at most a block of the cache
    warps: int = 4
    stages: int = 3
    per_sm: int = 2  # programs that share a multiprocessor


ROW_TILING = Tiling()
GROUP_TILING = Tiling()
_GROUP_QUERIES = 64  # query heads of a group that meet a tile of keys at once


def paged_attention(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table_RB: Tensor,
    lengths_R: Tensor,
    scale: float | None = None,
    tiling: Tiling = ROW_TILING,
) -> Tensor:
    """As `paged.paged_attention`."""
    tiling = _fitting(tiling, table_RB, k_cache)
    parts = _Parts(q_RNH, _num_slots(tiling, table_RB, k_cache))
    attend_chunks(q_RNH, k_cache, v_cache, table_RB, lengths_R, None, parts, 0, scale, tiling)
    return merge_parts(q_RNH, None, parts, lengths_R, tiling.chunk)


def grouped_paged_attention(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_table_GB: Tensor,
    prefix_lengths_G: Tensor,
    group_bounds_G: Tensor,
    suffix_table_RB: Tensor,
    suffix_lengths_R: Tensor,
    scale: float | None = None,
    group_tiling: Tiling = GROUP_TILING,
    tiling: Tiling = ROW_TILING,
) -> Tensor:
    """As `grouped.grouped_paged_attention`."""
    group_tiling = _fitting(group_tiling, prefix_table_GB, k_cache)
    tiling = _fitting(tiling, suffix_table_RB, k_cache)
    num_prefix = _num_slots(group_tiling, prefix_table_GB, k_cache)
    parts = _Parts(q_RNH, num_prefix + _num_slots(tiling, suffix_table_RB, k_cache))
    caches = (q_RNH, k_cache, v_cache)
    prefix = _Prefix(prefix_lengths_G, group_bounds_G, parts, group_tiling.chunk)
    attend_chunks(
        *caches, prefix_table_GB, prefix_lengths_G, group_bounds_G, parts, 0, scale, group_tiling
    )
    attend_chunks(
        *caches, suffix_table_RB, suffix_lengths_R, None, parts, num_prefix, scale, tiling
    )
    return merge_parts(q_RNH, prefix, parts.from_slot(num_prefix), suffix_lengths_R, tiling.chunk)


class _Parts:
    """Partial results `[R, slots, N, H]` fp32 and their base-2 log-sum-exps `[R, slots, N]`."""

    def __init__(self, q_RNH: Tensor, num_slots: int) -> None:
        rows, heads, size = q_RNH.shape
        self.out = q_RNH.new_empty((rows, num_slots, heads, size), dtype=torch.float32)
        self.lse = q_RNH.new_empty((rows, num_slots, heads), dtype=torch.float32)

    def from_slot(self, slot: int) -> "_Parts":
        view = object.__new__(_Parts)
        view.out, view.lse = self.out[:, slot:], self.lse[:, slot:]
        return view


class _Prefix(NamedTuple):
    lengths_G: Tensor
    bounds_G: Tensor
    parts: _Parts
    chunk: int


def _fitting(tiling: Tiling, table: Tensor, cache: Tensor) -> Tiling:
    """The tiling with chunks so long that no row needs more than `_MAX_SLOTS`."""
    block, chunk = cache.shape[1], tiling.chunk
    while table.shape[1] * block > chunk * _MAX_SLOTS:
        chunk *= 2
    return tiling._replace(tile=min(tiling.tile, block), chunk=max(chunk, block))


def _num_slots(tiling: Tiling, table: Tensor, cache: Tensor) -> int:
    return max(1, triton.cdiv(table.shape[1] * cache.shape[1], tiling.chunk))


def attend_chunks(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    lengths: Tensor,
    bounds: Tensor | None,
    parts: _Parts,
    first_slot: int,
    scale: float | None,
    tiling: Tiling,
) -> None:
    """Writes the partial result of every chunk of every sequence into `parts`.

    Sequence s is read by row s, or by rows `bounds[s] : bounds[s + 1]`.
    """
    rows, heads, size = q_RNH.shape
    block, key_heads = k_cache.shape[1:3]
    assert block & (block - 1) == 0 and block >= 16, f"a cache block has {block} tokens"
    assert k_cache.is_contiguous() and v_cache.is_contiguous(), "a cache must be contiguous"
    assert q_RNH.is_contiguous() and table.stride(1) == 1, "queries and tables must be contiguous"
    num_sequences = len(lengths)
    if num_sequences == 0 or rows == 0:
        return
    per_key = heads // key_heads
    queries = max(16, triton.next_power_of_2(per_key))
    _attend_chunks[(num_programs(q_RNH.device, tiling.per_sm),)](
        q_RNH, k_cache, v_cache, table, lengths, bounds, parts.out, parts.lse,
        num_sequences, table.stride(0), parts.out.stride(0), parts.lse.stride(0), first_slot,
        (size**-0.5 if scale is None else scale) * _LOG2_E.value,
        KEY_HEADS=key_heads, PER_KEY=per_key, SIZE=size, SIZE_PAD=triton.next_power_of_2(size),
        BLOCK=block, CHUNK=tiling.chunk, TILE=tiling.tile,
        QUERIES=queries if bounds is None else max(queries, _GROUP_QUERIES),
        SEQUENCES_PAD=max(16, triton.next_power_of_2(num_sequences)),
        HAS_BOUNDS=bounds is not None, PRECISION=_precision(q_RNH),
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip


def _precision(q: Tensor) -> str:
    return "ieee" if q.dtype == torch.float32 else "tf32"


def merge_parts(
    q_RNH: Tensor,
    prefix: _Prefix | None,
    suffix: _Parts,
    suffix_lengths_R: Tensor,
    suffix_chunk: int,
    exp_scale: float = 1.0,
) -> Tensor:
    """`[R, N, H]` of the parts of each row's prefix and suffix, in the dtype of `q_RNH`.

    `exp_scale` turns the log-sum-exps into base 2.
    """
    rows, heads, size = q_RNH.shape
    result = torch.empty_like(q_RNH)
    lengths_G, bounds_G, first, chunk = prefix or (None, None, suffix, suffix_chunk)
    num_groups = 0 if lengths_G is None else len(lengths_G)
    if rows == 0:
        return result
    _merge[(rows,)](
        first.out, first.lse, suffix.out, suffix.lse, result, lengths_G, bounds_G,
        suffix_lengths_R, num_groups, *first.out.stride()[:2], *first.lse.stride(),
        *suffix.out.stride()[:2], *suffix.lse.stride(), chunk, suffix_chunk, exp_scale,
        HEADS=heads, HEADS_PAD=triton.next_power_of_2(heads), SIZE=size,
        SIZE_PAD=triton.next_power_of_2(size),
        GROUPS_PAD=max(16, triton.next_power_of_2(max(1, num_groups))),
        HAS_PREFIX=prefix is not None, num_warps=4,
    )  # fmt: skip
    return result


@triton.jit
def _attend_chunks(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, bounds_ptr, out_ptr, lse_ptr,
    num_sequences, table_stride, out_stride, lse_stride, first_slot, scale,
    KEY_HEADS: tl.constexpr, PER_KEY: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr,
    SEQUENCES_PAD: tl.constexpr, HAS_BOUNDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # which sequences have how many chunks: every program counts for itself, once
    sequences = tl.arange(0, SEQUENCES_PAD)
    is_real = sequences < num_sequences
    lengths = tl.load(lengths_ptr + sequences, mask=is_real, other=0)
    counts = (lengths + CHUNK - 1) // CHUNK
    if HAS_BOUNDS:
        begins = tl.load(bounds_ptr + sequences, mask=is_real, other=0)
        counts = tl.where(
            tl.load(bounds_ptr + sequences + 1, mask=is_real, other=0) > begins, counts, 0
        )
    ends = tl.cumsum(counts, axis=0)
    num_items = tl.sum(counts, axis=0) * KEY_HEADS
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        unit = item // KEY_HEADS
        is_before = ends <= unit
        sequence = tl.sum(is_before.to(tl.int32), axis=0)
        chunk = unit - tl.sum(tl.where(is_before, counts, 0), axis=0)
        start = chunk * CHUNK
        stop = tl.minimum(tl.load(lengths_ptr + sequence), start + CHUNK)
        row, num_queries = sequence, PER_KEY
        if HAS_BOUNDS:
            row = tl.load(bounds_ptr + sequence)
            num_queries = (tl.load(bounds_ptr + sequence + 1) - row) * PER_KEY
            for query in range(0, num_queries, QUERIES):
                _attend_tiles(
                    q_ptr, k_ptr, v_ptr, table_ptr + sequence.to(tl.int64) * table_stride,
                    out_ptr, lse_ptr, row, item % KEY_HEADS, query, num_queries, start, stop,
                    out_stride, lse_stride, first_slot + chunk, scale, KEY_HEADS, PER_KEY, SIZE,
                    SIZE_PAD, BLOCK, CHUNK, TILE, QUERIES, PRECISION,
                )  # fmt: skip
        else:
            _attend_tiles(
                q_ptr, k_ptr, v_ptr, table_ptr + sequence.to(tl.int64) * table_stride,
                out_ptr, lse_ptr, row, item % KEY_HEADS, 0, num_queries, start, stop,
                out_stride, lse_stride, first_slot + chunk, scale, KEY_HEADS, PER_KEY, SIZE,
                SIZE_PAD, BLOCK, CHUNK, TILE, QUERIES, PRECISION,
            )  # fmt: skip


@triton.jit
def _attend_tiles(
    q_ptr, k_ptr, v_ptr, pages_ptr, out_ptr, lse_ptr, first_row, key_head, first_query,
    num_queries, start, stop, out_stride, lse_stride, slot, scale,
    KEY_HEADS: tl.constexpr, PER_KEY: tl.constexpr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one key head: its queries against tokens `start` to `stop`."""
    query = first_query + tl.arange(0, QUERIES)
    column = tl.arange(0, SIZE_PAD)
    is_query = query < num_queries
    row = (first_row + query // PER_KEY).to(tl.int64)
    head = key_head * PER_KEY + query % PER_KEY
    inside = is_query[:, None] & (column < SIZE)[None, :]
    q_place = (row * (KEY_HEADS * PER_KEY) + head) * SIZE
    q = tl.load(q_ptr + q_place[:, None] + column[None, :], mask=inside, other=0.0)
    top = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    acc = tl.zeros((QUERIES, SIZE_PAD), dtype=tl.float32)
    offset = tl.arange(0, TILE)
    # all of the chunk's blocks first: a load inside the loop would keep it from running ahead
    blocks = tl.arange(0, CHUNK // BLOCK)
    pages = tl.load(
        pages_ptr + start // BLOCK + blocks, mask=start + blocks * BLOCK < stop, other=0
    )
    for token in range(start, stop, TILE):
        page = tl.sum(tl.where(blocks == (token - start) // BLOCK, pages, 0), axis=0).to(tl.int64)
        is_seen = token + offset < stop
        place = ((page * BLOCK + token % BLOCK + offset) * KEY_HEADS + key_head) * SIZE
        mask = is_seen[:, None] & (column < SIZE)[None, :]
        k = tl.load(k_ptr + place[:, None] + column[None, :], mask=mask, other=0.0)
        v = tl.load(v_ptr + place[:, None] + column[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        mass = tl.exp2(scores - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(mass, axis=1)
        acc = tl.dot(mass.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
        top = new_top
    out = out_ptr + row * out_stride + (slot * (KEY_HEADS * PER_KEY) + head) * SIZE
    tl.store(out[:, None] + column[None, :], acc / total[:, None], mask=inside)
    lse = lse_ptr + row * lse_stride + slot * (KEY_HEADS * PER_KEY) + head
    tl.store(lse, top + tl.log2(total), mask=is_query)


@triton.jit
def _merge(
    first_ptr, first_lse_ptr, second_ptr, second_lse_ptr, result_ptr, lengths_ptr, bounds_ptr,
    suffix_lengths_ptr, num_groups, first_row_stride, first_slot_stride, first_lse_row_stride,
    first_lse_slot_stride, first_lse_head_stride, second_row_stride, second_slot_stride,
    second_lse_row_stride, second_lse_slot_stride, second_lse_head_stride, first_chunk,
    second_chunk, exp_scale, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr, GROUPS_PAD: tl.constexpr, HAS_PREFIX: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_PAD)
    column = tl.arange(0, SIZE_PAD)
    is_head = head < HEADS
    inside = is_head[:, None] & (column < SIZE)[None, :]
    place = head[:, None] * SIZE + column[None, :]
    top = tl.full((HEADS_PAD,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((HEADS_PAD,), dtype=tl.float32)
    acc = tl.zeros((HEADS_PAD, SIZE_PAD), dtype=tl.float32)
    if HAS_PREFIX:
        groups = tl.arange(0, GROUPS_PAD)
        ends = tl.load(bounds_ptr + 1 + groups, mask=groups < num_groups, other=2**30)
        group = tl.sum((ends <= row).to(tl.int32), axis=0)
        length = tl.load(lengths_ptr + group, mask=group < num_groups, other=0)
        for slot in range((length + first_chunk - 1) // first_chunk):
            lse = first_lse_ptr + row * first_lse_row_stride + slot * first_lse_slot_stride
            part = first_ptr + row * first_row_stride + slot * first_slot_stride
            top, total, acc = _take_part(
                part + place, lse + head * first_lse_head_stride, inside, is_head, exp_scale,
                top, total, acc,
            )  # fmt: skip
    length = tl.load(suffix_lengths_ptr + row)
    for slot in range((length + second_chunk - 1) // second_chunk):
        lse = second_lse_ptr + row * second_lse_row_stride + slot * second_lse_slot_stride
        part = second_ptr + row * second_row_stride + slot * second_slot_stride
        top, total, acc = _take_part(
            part + place, lse + head * second_lse_head_stride, inside, is_head, exp_scale,
            top, total, acc,
        )  # fmt: skip
    # a row that saw nothing gives zeros
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    result_place = result_ptr + row * (HEADS * SIZE) + place
    tl.store(result_place, result.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _take_part(part_ptr, lse_ptr, inside, is_head, exp_scale, top, total, acc):
    lse = tl.load(lse_ptr, mask=is_head, other=0.0) * exp_scale
    part = tl.load(part_ptr, mask=inside, other=0.0).to(tl.float32)
    new_top = tl.maximum(top, lse)
    decay, share = tl.exp2(top - new_top), tl.exp2(lse - new_top)
    return new_top, total * decay + share, acc * decay[:, None] + part * share[:, None]
