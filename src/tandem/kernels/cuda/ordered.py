"""Attention in one order, in Triton: packed training, prefill and decode give a token equal bits.

A query sees its keys in blocks of 64 from the first on, folded one after the other into one state
of online softmax (Milakov and Gimelshein, 2018; Dao, 2023): scores in fp32, their largest so far,
weights rounded to the dtype of the values, and the sums of values and of weights made by the same
tensor core instruction. So neither the number of queries in a tile, nor the page of a key, nor who
shares a prefix changes a bit. The backward pass is FlashAttention's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N = 64
"""Keys that are folded together; part of what the bits are a function of."""
LOG2_E = 1.4426950408889634
_HOW = (128, 8, 3)  # queries of a program, warps, stages


def attend(
    q_TNH: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_S: Tensor,
    longest: int,
    scale: float | None = None,
    *,
    table_SB: Tensor | None = None,
    lengths_S: Tensor | None = None,
    want_lse: bool = False,
    how: tuple[int, int, int] = _HOW,
) -> tuple[Tensor, Tensor | None]:
    """Attended values `[T, N, H]`, and the natural log-sum-exps `[N, T]` fp32 when asked for.

    Keys and values are `[T, K, H]`, packed like the queries, or with `table_SB` pages
    `[B, block, K, H]` of which sequence s reads its first `lengths_S[s]` tokens; its queries are
    the last of them.
    """
    tokens, heads, size = q_TNH.shape
    assert all(x.is_contiguous() for x in (q_TNH, k, v)), "rows of heads must be contiguous"
    out = torch.empty_like(q_TNH)
    lse = q_TNH.new_empty(heads, tokens, dtype=torch.float32) if want_lse else None
    sequences = len(bounds_S) - 1
    tile, warps, stages = how
    if tokens and sequences:
        _attend_tile[(triton.cdiv(longest, tile), heads, sequences)](
            q_TNH, k, v, out, lse, bounds_S, lengths_S, table_SB,
            0 if table_SB is None else table_SB.stride(0), tokens,
            (size**-0.5 if scale is None else scale) * LOG2_E,
            N=heads, K=k.shape[-2], H=size, BS=k.shape[1] if table_SB is not None else 1,
            IS_PAGED=table_SB is not None, HAS_LSE=want_lse, BLOCK_M=tile, BLOCK_N=BLOCK_N,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out, lse


@triton.jit
def fold(
    q, k_ptr, v_ptr, where, is_loaded, is_seen, out, top, total, scale,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The state of `[M, H]` queries after one more block of keys.

    `where` is the offset of each key, `is_loaded` None if all may be read, `is_seen` None if all
    queries see all of them. `total` holds the sum of weights in each of 16 columns.
    """
    if is_loaded is None:
        keys = tl.load(k_ptr + where)
        values = tl.load(v_ptr + where)
    else:
        keys = tl.load(k_ptr + where, mask=is_loaded, other=0.0)
        values = tl.load(v_ptr + where, mask=is_loaded, other=0.0)
    scores = tl.dot(q, tl.trans(keys))
    if is_seen is not None:
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # a fused multiply-add by name: what the compiler makes of `a * b - c` may differ by kernel
    weights = tl.exp2(tl.fma(scores, scale, (-new_top * scale)[:, None])).to(values.dtype)
    shrink = tl.exp2((top - new_top) * scale)
    out = tl.dot(weights, values, out * shrink[:, None])
    # summed by the tensor core too: the order of a plain sum depends on the layout of the tile
    ones = tl.full((BLOCK_N, 16), 1.0, values.dtype)
    total = tl.dot(weights, ones, total * shrink[:, None])
    return out, new_top, total


@triton.jit
def offsets_of(
    start, first, table_row_ptr, last, key_head,
    K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr, IS_PAGED: tl.constexpr,
    IS_FULL: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    place = start + tl.arange(0, BLOCK_N)
    if IS_PAGED:
        if IS_FULL:
            block = tl.load(table_row_ptr + place // BS).to(tl.int64)
        else:
            block = tl.load(table_row_ptr + place // BS, mask=place < last, other=0).to(tl.int64)
        token = block * BS + place % BS
    else:
        token = (first + place).to(tl.int64)
    return place, ((token * K + key_head) * H)[:, None] + tl.arange(0, H)[None, :]


@triton.jit
def _attend_tile(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, bounds_ptr, lengths_ptr, table_ptr, table_stride, tokens,
    scale, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    IS_PAGED: tl.constexpr, HAS_LSE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # the last tile of a sequence has the most to do, so it comes first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sequence = tl.program_id(1), tl.program_id(2)
    first = tl.load(bounds_ptr + sequence)
    count = tl.load(bounds_ptr + sequence + 1) - first
    if tile * BLOCK_M >= count:
        return
    key_head = head // (N // K)
    length = count
    table_row_ptr = table_ptr
    if IS_PAGED:
        length = tl.load(lengths_ptr + sequence)
        table_row_ptr = table_ptr + sequence.to(tl.int64) * table_stride
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = length - count + row  # its place in the sequence
    is_real = row < count
    where = ((first + row).to(tl.int64) * N + head)[:, None] * H + tl.arange(0, H)[None, :]
    q = tl.load(q_ptr + where, mask=is_real[:, None], other=0.0)
    out = tl.zeros((BLOCK_M, H), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M, 16), tl.float32)
    before = length - count + tile * BLOCK_M + 1  # keys that all queries of the tile see
    last = tl.minimum(length, before + BLOCK_M - 1)
    whole = before // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        place, offsets = offsets_of(
            start, first, table_row_ptr, last, key_head, K, H, BS, IS_PAGED, True, BLOCK_N
        )
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, None, None, out, top, total, scale, BLOCK_N
        )
    for start in range(whole, last, BLOCK_N):
        place, offsets = offsets_of(
            start, first, table_row_ptr, last, key_head, K, H, BS, IS_PAGED, False, BLOCK_N
        )
        is_seen = (place[None, :] <= query[:, None]) & (place < last)[None, :]
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, (place < last)[:, None], is_seen, out, top, total, scale,
            BLOCK_N,
        )  # fmt: skip
    total = tl.max(total, 1)  # all columns are equal
    out = out / total[:, None]
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=is_real[:, None])
    if HAS_LSE:
        lse = (top * scale + tl.log2(total)) * 0.6931471805599453
        tl.store(lse_ptr + head.to(tl.int64) * tokens + first + row, lse, mask=is_real)
