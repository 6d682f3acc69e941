"""Decode attention over the paged cache in the order of `ordered`: a group's prompt is read once.

Two launches: the prefixes (a program folds a group's prompt into the states of some of its rows),
then each row's own keys, which go on from that state and end it. So what is shared changes no bit.
Shapes and grids do not depend on what the tensors hold, so a CUDA graph can replay a launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.cuda.ordered import BLOCK_N, LOG2_E, fold, offsets_of

_TILE = 64  # rows of a wgmma


def paged_attention(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table_RB: Tensor,
    lengths_R: Tensor,
    scale: float | None = None,
    tile: int = _TILE,
    stages: int = 3,
) -> Tensor:
    """As `paged.paged_attention`."""
    return _decode(q_RNH, k_cache, v_cache, None, table_RB, lengths_R, scale, tile, stages)


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
    tile: int = _TILE,
    stages: int = 3,
) -> Tensor:
    """As `grouped.grouped_paged_attention`; groups of any size, one that is empty costs little.

    Prefixes end where a block of 64 keys does.
    """
    prefix = (prefix_table_GB, prefix_lengths_G, group_bounds_G)
    rows = (suffix_table_RB, suffix_lengths_R)
    return _decode(q_RNH, k_cache, v_cache, prefix, *rows, scale, tile, stages)


def _decode(q_RNH, k_cache, v_cache, prefix, table_RB, lengths_R, scale, tile, stages) -> Tensor:
    rows, heads, size = q_RNH.shape
    key_heads, block = k_cache.shape[2], k_cache.shape[1]
    per_key = heads // key_heads
    scale = (size**-0.5 if scale is None else scale) * LOG2_E
    q_RNH = q_RNH.contiguous()
    shared = {"N": heads, "K": key_heads, "H": size, "BS": block, "BLOCK_N": BLOCK_N}
    shared |= {"BLOCK_M": tile, "num_warps": 4, "num_stages": stages}
    out = torch.empty_like(q_RNH)
    state = top_total = None
    if prefix is not None:
        table_GB, lengths_G, bounds_G = prefix
        state = q_RNH.new_empty(q_RNH.shape, dtype=torch.float32)
        top_total = torch.full(
            (2, rows, heads), float("-inf"), dtype=torch.float32, device=q_RNH.device
        )
        chunk = tile // per_key
        groups = len(lengths_G)
        grid = (groups, key_heads, triton.cdiv(rows, chunk * max(1, groups // 4)))
        _fold_prefix[grid](
            q_RNH, k_cache, v_cache, table_GB, lengths_G, bounds_G, state, top_total,
            table_GB.stride(0), rows, scale, **shared,
        )  # fmt: skip
    _fold_suffix[(rows, key_heads)](
        q_RNH, k_cache, v_cache, table_RB, lengths_R, state, top_total, out,
        table_RB.stride(0), rows, scale, HAS_PREFIX=prefix is not None, **shared,
    )  # fmt: skip
    return out


@triton.jit
def _fold_pages(
    q, k_ptr, v_ptr, table_row_ptr, length, key_head, out, top, total, scale,
    K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    whole = length // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        _, offsets = offsets_of(
            start, 0, table_row_ptr, length, key_head, K, H, BS, True, True, BLOCK_N
        )
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, None, None, out, top, total, scale, BLOCK_N
        )
    if whole < length:
        place, offsets = offsets_of(
            whole, 0, table_row_ptr, length, key_head, K, H, BS, True, False, BLOCK_N
        )
        is_there = place < length
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, is_there[:, None], is_there[None, :], out, top, total, scale,
            BLOCK_N,
        )  # fmt: skip
    return out, top, total


@triton.jit
def _fold_suffix(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, state_ptr, top_total_ptr, out_ptr, table_stride,
    rows, scale, HAS_PREFIX: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
    BS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, key_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + row)
    head = tl.arange(0, BLOCK_M)
    is_head = head < N // K
    target = row.to(tl.int64) * N + key_head * (N // K) + head
    where = target[:, None] * H + tl.arange(0, H)[None, :]
    q = tl.load(q_ptr + where, mask=is_head[:, None], other=0.0)
    if HAS_PREFIX:
        top = tl.load(top_total_ptr + target, mask=is_head, other=float("-inf"))
        is_begun = top > float("-inf")
        amount = tl.load(top_total_ptr + rows * N + target, mask=is_begun, other=0.0)
        total = tl.zeros((BLOCK_M, 16), tl.float32) + amount[:, None]
        # what no prefix wrote must not be read: NaN times 0 is NaN
        out = tl.load(state_ptr + where, mask=is_begun[:, None], other=0.0)
    else:
        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M, 16), tl.float32)
        out = tl.zeros((BLOCK_M, H), tl.float32)
    out, top, total = _fold_pages(
        q, k_ptr, v_ptr, table_ptr + row.to(tl.int64) * table_stride, length, key_head, out, top,
        total, scale, K, H, BS, BLOCK_N,
    )  # fmt: skip
    amount = tl.max(total, 1)
    out = out / tl.where(amount > 0, amount, 1.0)[:, None]
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=is_head[:, None])


@triton.jit
def _fold_prefix(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, bounds_ptr, state_ptr, top_total_ptr, table_stride,
    rows, scale, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group, key_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + group)
    if length == 0:
        return
    CHUNK: tl.constexpr = BLOCK_M // (N // K)
    first, last = tl.load(bounds_ptr + group), tl.load(bounds_ptr + group + 1)
    index = tl.arange(0, BLOCK_M)
    for start in range(first + tl.program_id(2) * CHUNK, last, tl.num_programs(2) * CHUNK):
        row = start + index // (N // K)
        is_real = (index < CHUNK * (N // K)) & (row < last)
        target = row.to(tl.int64) * N + key_head * (N // K) + index % (N // K)
        where = target[:, None] * H + tl.arange(0, H)[None, :]
        q = tl.load(q_ptr + where, mask=is_real[:, None], other=0.0)
        out, top, total = _fold_pages(
            q, k_ptr, v_ptr, table_ptr + group.to(tl.int64) * table_stride, length, key_head,
            tl.zeros((BLOCK_M, H), tl.float32), tl.full((BLOCK_M,), float("-inf"), tl.float32),
            tl.zeros((BLOCK_M, 16), tl.float32), scale, K, H, BS, BLOCK_N,
        )  # fmt: skip
        tl.store(state_ptr + where, out, mask=is_real[:, None])
        tl.store(top_total_ptr + target, top, mask=is_real)
        tl.store(top_total_ptr + rows * N + target, tl.max(total, 1), mask=is_real)
