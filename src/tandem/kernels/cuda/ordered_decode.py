"""Decode attention over the paged cache in the order of `ordered`: a group's prompt is read once.

The prefixes come first (a program folds a chunk of a group's prompt into the states of some of its
rows), then each row's own keys, which go on from that state. A row of several chunks is shared out
among programs where rows are few, and its states are merged in the order of chunks. So neither what
is shared nor how work is cut changes a bit. Shapes and grids do not depend on what the tensors
hold, so a CUDA graph can replay a launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.cuda.ordered import BLOCK_N, CHUNK, LOG2_E, fold, merge, offsets_of
from tandem.kernels.device import is_half

_TILE = 64  # rows of a wgmma
_TILE_FP32 = 16  # more do not fit the registers
_STAGES = 2  # blocks of keys on their way; no bit depends on it
_PROGRAMS = 2048  # enough to fill 132 multiprocessors several times


def paged_attention(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table_RB: Tensor,
    lengths_R: Tensor,
    scale: float | None = None,
) -> Tensor:
    """As `paged.paged_attention`."""
    return _decode(q_RNH, k_cache, v_cache, None, table_RB, lengths_R, scale)


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
) -> Tensor:
    """As `grouped.grouped_paged_attention`; groups of any size, one that is empty costs little.

    Prefixes end where a block of 64 keys does.
    """
    prefix = (prefix_table_GB, prefix_lengths_G, group_bounds_G)
    return _decode(q_RNH, k_cache, v_cache, prefix, suffix_table_RB, suffix_lengths_R, scale)


def _decode(q_RNH, k_cache, v_cache, prefix, table_RB, lengths_R, scale) -> Tensor:
    rows, heads, size = q_RNH.shape
    key_heads, block = k_cache.shape[2], k_cache.shape[1]
    scale = (size**-0.5 if scale is None else scale) * LOG2_E
    q_RNH = q_RNH.contiguous()
    out = torch.empty_like(q_RNH)
    if not rows:
        return out
    per_key = heads // key_heads
    tile = _TILE if is_half(q_RNH) else max(_TILE_FP32, triton.next_power_of_2(per_key))
    assert per_key <= tile, f"{per_key} query heads a key head are more than a tile has rows"
    shared = {"N": heads, "K": key_heads, "H": size, "BLOCK_M": tile, "CHUNK": CHUNK}
    pages = {"BS": block, "BLOCK_N": BLOCK_N, "num_warps": 4, "num_stages": _STAGES}
    blocks = table_RB.shape[1] + (0 if prefix is None else prefix[0].shape[1])
    chunks = triton.cdiv(blocks * block, CHUNK)
    state = q_RNH.new_empty((chunks, *q_RNH.shape), dtype=torch.float32)
    tops, totals = q_RNH.new_empty((2, chunks, rows, heads), dtype=torch.float32)
    begun_R = None
    if prefix is not None:
        table_GB, lengths_G, bounds_G = prefix
        begun_R = torch.zeros(rows, dtype=torch.int32, device=q_RNH.device)
        groups, together = len(lengths_G), tile // per_key
        tiles = triton.cdiv(rows, together * max(1, groups // 4))
        _fold_prefix[(groups, key_heads, max(tiles, _splits(chunks, groups * key_heads)))](
            q_RNH, k_cache, v_cache, table_GB, lengths_G, bounds_G, state, tops, totals, begun_R,
            table_GB.stride(0), rows, scale, **shared, **pages,
        )  # fmt: skip
    splits = _splits(chunks, rows * key_heads)
    _fold_suffix[(rows, key_heads, splits)](
        q_RNH, k_cache, v_cache, table_RB, lengths_R, begun_R, state, tops, totals, out,
        table_RB.stride(0), rows, scale, HAS_PREFIX=prefix is not None, MERGES=splits == 1,
        **shared, **pages,
    )  # fmt: skip
    if splits > 1:
        _merge_chunks[(rows, key_heads)](
            lengths_R, begun_R, state, tops, totals, out, rows, scale,
            HAS_PREFIX=prefix is not None, **shared, num_warps=4,
        )  # fmt: skip
    return out


def _splits(chunks: int, programs: int) -> int:
    """Among how many programs the chunks of a sequence are shared out."""
    return min(chunks, max(1, _PROGRAMS // programs))


@triton.jit
def _fold_pages(
    q, k_ptr, v_ptr, table_row_ptr, first, last, key_head, out, top, total, scale,
    K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The state after keys `first`, where a block begins, to `last` of a row of a table."""
    whole = last // BLOCK_N * BLOCK_N
    for start in range(first, whole, BLOCK_N):
        _, offsets = offsets_of(
            start, 0, table_row_ptr, last, key_head, K, H, BS, True, True, BLOCK_N
        )
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, None, None, out, top, total, scale, BLOCK_N
        )
    if whole < last:
        place, offsets = offsets_of(
            whole, 0, table_row_ptr, last, key_head, K, H, BS, True, False, BLOCK_N
        )
        is_there = place < last
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, is_there[:, None], is_there[None, :], out, top, total, scale,
            BLOCK_N,
        )  # fmt: skip
    return out, top, total


@triton.jit
def _finish(
    state_ptr, tops_ptr, totals_ptr, out_ptr, target, is_head, num_chunks, rows, scale,
    N: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Merges the states of a row's chunks from the first on, and writes what it attends to."""
    column = tl.arange(0, H)[None, :]
    out = tl.load(state_ptr + target[:, None] * H + column, mask=is_head[:, None], other=0.0)
    top = tl.load(tops_ptr + target, mask=is_head, other=0.0)
    total = tl.load(totals_ptr + target, mask=is_head, other=1.0)
    for chunk in range(1, num_chunks):
        place = target + tl.cast(chunk, tl.int64) * rows * N
        next_out = tl.load(
            state_ptr + place[:, None] * H + column, mask=is_head[:, None], other=0.0
        )
        next_top = tl.load(tops_ptr + place, mask=is_head, other=0.0)
        next_total = tl.load(totals_ptr + place, mask=is_head, other=1.0)
        out, top, total = merge(out, top, total, next_out, next_top, next_total, scale)
    out = out / total[:, None]
    where = target[:, None] * H + column
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=is_head[:, None])


@triton.jit
def _fold_suffix(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, begun_ptr, state_ptr, tops_ptr, totals_ptr,
    out_ptr, table_stride, rows, scale, HAS_PREFIX: tl.constexpr, MERGES: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, key_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + row)
    begun = 0
    if HAS_PREFIX:
        begun = tl.load(begun_ptr + row)
        length += begun
    num_chunks = tl.maximum(tl.cdiv(length, CHUNK), 1)
    head = tl.arange(0, BLOCK_M)
    is_head = head < N // K
    target = row.to(tl.int64) * N + key_head * (N // K) + head
    where = target[:, None] * H + tl.arange(0, H)[None, :]
    q = tl.load(q_ptr + where, mask=is_head[:, None], other=0.0)
    for chunk in range(tl.program_id(2), num_chunks, tl.num_programs(2)):
        begin = chunk * CHUNK
        slot = tl.cast(chunk, tl.int64) * rows * N
        if HAS_PREFIX:
            # what no prefix wrote must not be read: NaN times 0 is NaN
            is_begun = is_head & (begun > begin)
            top = tl.load(tops_ptr + slot + target, mask=is_begun, other=float("-inf"))
            amount = tl.load(totals_ptr + slot + target, mask=is_begun, other=0.0)
            total = tl.zeros((BLOCK_M, 16), tl.float32) + amount[:, None]
            out = tl.load(state_ptr + slot * H + where, mask=is_begun[:, None], other=0.0)
        else:
            top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_M, 16), tl.float32)
            out = tl.zeros((BLOCK_M, H), tl.float32)
        out, top, total = _fold_pages(
            q, k_ptr, v_ptr, table_ptr + row.to(tl.int64) * table_stride,
            tl.maximum(begin - begun, 0), tl.minimum(begin + CHUNK, length) - begun, key_head, out,
            top, total, scale, K, H, BS, BLOCK_N,
        )  # fmt: skip
        amount = tl.max(total, 1)
        if num_chunks == 1:
            out = out / tl.where(amount > 0, amount, 1.0)[:, None]
            tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=is_head[:, None])
        else:
            tl.store(state_ptr + slot * H + where, out, mask=is_head[:, None])
            tl.store(tops_ptr + slot + target, top, mask=is_head)
            tl.store(totals_ptr + slot + target, amount, mask=is_head)
    if MERGES:  # noqa: SIM102 - known when it is compiled, unlike the other condition
        if num_chunks > 1:
            tl.debug_barrier()  # another thread may have written what this one reads
            _finish(
                state_ptr, tops_ptr, totals_ptr, out_ptr, target, is_head, num_chunks, rows, scale,
                N, H,
            )  # fmt: skip


@triton.jit
def _merge_chunks(
    lengths_ptr, begun_ptr, state_ptr, tops_ptr, totals_ptr, out_ptr, rows, scale,
    HAS_PREFIX: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
    BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, key_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + row)
    if HAS_PREFIX:
        length += tl.load(begun_ptr + row)
    if length <= CHUNK:
        return
    head = tl.arange(0, BLOCK_M)
    target = row.to(tl.int64) * N + key_head * (N // K) + head
    _finish(
        state_ptr, tops_ptr, totals_ptr, out_ptr, target, head < N // K, tl.cdiv(length, CHUNK),
        rows, scale, N, H,
    )  # fmt: skip


@triton.jit
def _fold_prefix(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, bounds_ptr, state_ptr, tops_ptr, totals_ptr,
    begun_ptr, table_stride, rows, scale, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
    BS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    group, key_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + group)
    if length == 0:
        return
    TOGETHER: tl.constexpr = BLOCK_M // (N // K)
    first, last = tl.load(bounds_ptr + group), tl.load(bounds_ptr + group + 1)
    num_chunks = tl.cdiv(length, CHUNK)
    index = tl.arange(0, BLOCK_M)
    num_items = tl.cdiv(last - first, TOGETHER) * num_chunks
    for item in range(tl.program_id(2), num_items, tl.num_programs(2)):
        chunk = item % num_chunks
        row = first + item // num_chunks * TOGETHER + index // (N // K)
        is_real = (index < TOGETHER * (N // K)) & (row < last)
        target = row.to(tl.int64) * N + key_head * (N // K) + index % (N // K)
        where = target[:, None] * H + tl.arange(0, H)[None, :]
        q = tl.load(q_ptr + where, mask=is_real[:, None], other=0.0)
        out, top, total = _fold_pages(
            q, k_ptr, v_ptr, table_ptr + group.to(tl.int64) * table_stride, chunk * CHUNK,
            tl.minimum(chunk * CHUNK + CHUNK, length), key_head,
            tl.zeros((BLOCK_M, H), tl.float32), tl.full((BLOCK_M,), float("-inf"), tl.float32),
            tl.zeros((BLOCK_M, 16), tl.float32), scale, K, H, BS, BLOCK_N,
        )  # fmt: skip
        slot = tl.cast(chunk, tl.int64) * rows * N
        tl.store(state_ptr + slot * H + where, out, mask=is_real[:, None])
        tl.store(tops_ptr + slot + target, top, mask=is_real)
        tl.store(totals_ptr + slot + target, tl.max(total, 1), mask=is_real)
        tl.store(begun_ptr + row, length, mask=is_real & (key_head == 0))
