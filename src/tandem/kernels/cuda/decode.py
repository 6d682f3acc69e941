"""Decode attention over the paged cache in Triton: one query a row, a group's prompt read once.

Three launches: the prefixes (a program holds all query heads of a key head for some rows of a
group), the suffixes (a program holds a share of one row's tokens), and their merge by log-sum-exp.
Shapes and grids do not depend on what the tensors hold, so a CUDA graph can replay a launch.

One H200, 256 rows of 512 tokens behind 32 prompts of 256, 32 / 8 heads of 128: 158 us, where
FlashAttention 4 (4.0.0b15, which has no split over keys on Hopper) takes 280 us for the same rows
of 768. That one stays the path whose bits equal the packed forward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_N = 64  # tokens a program looks at together
_MIN_M = 16  # rows of a tensor core's tile
_PROGRAMS = 2048  # enough to fill 132 multiprocessors several times
_MAX_SPLITS = 32
_LOG2_E = 1.4426950408889634


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
    """As `grouped.grouped_paged_attention`; groups of any size, one that is empty costs little."""
    prefix = (prefix_table_GB, prefix_lengths_G, group_bounds_G)
    return _decode(q_RNH, k_cache, v_cache, prefix, suffix_table_RB, suffix_lengths_R, scale)


def _decode(q_RNH, k_cache, v_cache, prefix, table_RB, lengths_R, scale) -> Tensor:
    rows, heads, size = q_RNH.shape
    key_heads, block = k_cache.shape[2], k_cache.shape[1]
    per_key = heads // key_heads
    scale = (size**-0.5 if scale is None else scale) * _LOG2_E
    q_RNH = q_RNH.contiguous()
    splits = min(_MAX_SPLITS, max(1, _PROGRAMS // max(1, rows * key_heads)))
    parts = splits + (prefix is not None)
    fresh = {"device": q_RNH.device, "dtype": torch.float32}
    out = torch.empty(parts, rows, heads, size, **fresh)
    lse = torch.empty(parts, rows, heads, **fresh)
    shared = {"N": heads, "K": key_heads, "H": size, "BS": block, "BLOCK_N": _BLOCK_N}
    if prefix is not None:
        table_GB, lengths_G, bounds_G = prefix
        lse[splits].fill_(float("-inf"))
        tile = max(_MIN_M, triton.next_power_of_2(min(64, 8 * per_key)))
        chunk = tile // per_key
        groups = len(lengths_G)
        _prefix_kernel[(groups, key_heads, triton.cdiv(rows, chunk * max(1, groups // 4)))](
            q_RNH, k_cache, v_cache, table_GB, lengths_G, bounds_G, out[splits], lse[splits],
            table_GB.stride(0), scale, CHUNK=chunk, BLOCK_M=tile, **shared,
            num_warps=4, num_stages=3,
        )  # fmt: skip
    tile = max(_MIN_M, triton.next_power_of_2(per_key))
    _suffix_kernel[(rows, key_heads, splits)](
        q_RNH, k_cache, v_cache, table_RB, lengths_R, out, lse, table_RB.stride(0), rows, scale,
        SPLITS=splits, BLOCK_M=tile, **shared, num_warps=4, num_stages=3,
    )  # fmt: skip
    merged = torch.empty_like(q_RNH)
    _merge_kernel[(rows, heads)](
        out, lse, merged, rows, N=heads, H=size, PARTS=parts,
        BLOCK_P=triton.next_power_of_2(parts), num_warps=1,
    )  # fmt: skip
    return merged


@triton.jit
def _attend_range(
    q, k_ptr, v_ptr, table_row_ptr, lo, hi, key_head, scale,
    K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention of `[BLOCK_M, H]` queries to tokens lo to hi of a table row, and its base-2 lse."""
    column = tl.arange(0, H)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, H), tl.float32)
    for start in range(lo, hi, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        is_seen = place < hi
        block = tl.load(table_row_ptr + place // BS, mask=is_seen, other=0).to(tl.int64)
        token = ((block * BS + place % BS) * K + key_head) * H
        where = token[:, None] + column[None, :]
        keys = tl.load(k_ptr + where, mask=is_seen[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(keys)) * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        mass = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(mass, 1)
        values = tl.load(v_ptr + where, mask=is_seen[:, None], other=0.0)
        out = out * shrink[:, None] + tl.dot(mass.to(values.dtype), values)
        top = new_top
    return out / total[:, None], top + tl.log2(total)


@triton.jit
def _suffix_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, out_ptr, lse_ptr, table_stride, rows, scale,
    SPLITS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, key_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + row)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
    lo = split * share
    hi = tl.minimum(lo + share, length)
    head = tl.arange(0, BLOCK_M)
    is_head = head < N // K
    target = (split * rows + row).to(tl.int64) * N + key_head * (N // K) + head
    if lo >= hi:
        tl.store(lse_ptr + target, tl.full((BLOCK_M,), float("-inf"), tl.float32), mask=is_head)
        return
    column = tl.arange(0, H)
    source = (row * N + key_head * (N // K) + head)[:, None] * H + column[None, :]
    q = tl.load(q_ptr + source, mask=is_head[:, None], other=0.0)
    out, lse = _attend_range(
        q, k_ptr, v_ptr, table_ptr + row.to(tl.int64) * table_stride, lo, hi, key_head, scale,
        K=K, H=H, BS=BS, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    tl.store(out_ptr + target[:, None] * H + column[None, :], out, mask=is_head[:, None])
    tl.store(lse_ptr + target, lse, mask=is_head)


@triton.jit
def _prefix_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, bounds_ptr, out_ptr, lse_ptr, table_stride, scale,
    CHUNK: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group, key_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths_ptr + group)
    if length == 0:
        return
    first, last = tl.load(bounds_ptr + group), tl.load(bounds_ptr + group + 1)
    index = tl.arange(0, BLOCK_M)
    column = tl.arange(0, H)
    for start in range(first + tl.program_id(2) * CHUNK, last, tl.num_programs(2) * CHUNK):
        row = start + index // (N // K)
        is_real = (index < CHUNK * (N // K)) & (row < last)
        target = row.to(tl.int64) * N + key_head * (N // K) + index % (N // K)
        where = target[:, None] * H + column[None, :]
        q = tl.load(q_ptr + where, mask=is_real[:, None], other=0.0)
        out, lse = _attend_range(
            q, k_ptr, v_ptr, table_ptr + group.to(tl.int64) * table_stride, 0, length, key_head,
            scale, K=K, H=H, BS=BS, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        )  # fmt: skip
        tl.store(out_ptr + where, out, mask=is_real[:, None])
        tl.store(lse_ptr + target, lse, mask=is_real)


@triton.jit
def _merge_kernel(
    out_ptr, lse_ptr, merged_ptr, rows,
    N: tl.constexpr, H: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    part = tl.arange(0, BLOCK_P)
    column = tl.arange(0, H)
    source = (part.to(tl.int64) * rows + row) * N + head
    lse = tl.load(lse_ptr + source, mask=part < PARTS, other=float("-inf"))
    top = tl.max(lse, 0)
    share = tl.where(lse > float("-inf"), tl.exp2(lse - top), 0.0)
    # what was never computed was never written: it must not be read, NaN times 0 is NaN
    values = tl.load(
        out_ptr + source[:, None] * H + column[None, :],
        mask=(lse > float("-inf"))[:, None], other=0.0,
    )  # fmt: skip
    total = tl.sum(share, 0)
    merged = tl.sum(values * share[:, None], 0) / tl.where(total > 0, total, 1.0)
    place = (row.to(tl.int64) * N + head) * H + column
    tl.store(merged_ptr + place, merged.to(merged_ptr.dtype.element_ty))
