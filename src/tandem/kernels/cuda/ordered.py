"""Attention in one order, in Triton: packed training, prefill and decode give a token equal bits.

A query sees its keys in blocks of 64 from the first on, folded one after the other into one state
of online softmax (Milakov and Gimelshein, 2018; Dao, 2023): scores in fp32, their largest so far,
weights rounded to the dtype of the values, and the sums of values and of weights made by the same
tensor core instruction. Every 2,048 keys begin a new state, and a query's states are merged from
the first on, so that several programs can work on a long sequence. So neither the number of queries
in a tile, nor the page of a key, nor who shares a prefix, nor how many programs there are changes
a bit. The backward pass is FlashAttention's, see `flash`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.device import KEYS_TOGETHER

BLOCK_N = KEYS_TOGETHER  # bits are a function of this
CHUNK = 2048
"""Keys that are folded into one state; bits are a function of this too."""
LOG2_E = 1.4426950408889634


def attend(
    q_TNH: Tensor,
    k: Tensor,
    v: Tensor,
    bounds_S: Tensor,
    longest: int,
    scale: float | None = None,
    *,
    keys: tuple[Tensor, int] | None = None,
    table_SB: Tensor | None = None,
    lengths_S: Tensor | None = None,
    want_lse: bool = False,
    how: tuple[int, int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attended values `[T, N, H]`, and the natural log-sum-exps `[N, T]` fp32 when asked for.

    Keys and values are `[U, K, H]`, packed like the queries or, with `keys`, by bounds of their
    own, given with the longest length; with `table_SB` they are pages `[B, block, K, H]` of which
    sequence s reads its first `lengths_S[s]` tokens. The queries are the last of a sequence's keys.
    `how`: queries of a program, warps, stages.
    """
    tokens, heads, size = q_TNH.shape
    assert all(x.is_contiguous() for x in (q_TNH, k, v)), "rows of heads must be contiguous"
    out = torch.empty_like(q_TNH)
    lse = q_TNH.new_empty(heads, tokens, dtype=torch.float32) if want_lse else None
    sequences = len(bounds_S) - 1
    if not tokens or not sequences:
        return out, lse
    key_bounds_S, longest_keys = (bounds_S, longest) if keys is None else keys
    if table_SB is not None:
        longest_keys = table_SB.shape[1] * k.shape[1]
    kept = marks = None
    if longest_keys > CHUNK:  # the states of earlier chunks, each read back by its program
        kept = q_TNH.new_empty(q_TNH.shape, dtype=torch.float32)
        marks = q_TNH.new_empty(2, heads, tokens, dtype=torch.float32)
    tile, warps, stages = how or ((128, 8, 3) if size <= 128 else (64, 4, 2))
    _attend_tile[(triton.cdiv(longest, tile), heads, sequences)](
        q_TNH, k, v, out, lse, kept, marks, bounds_S, key_bounds_S, lengths_S, table_SB,
        0 if table_SB is None else table_SB.stride(0), tokens,
        (size**-0.5 if scale is None else scale) * LOG2_E,
        N=heads, K=k.shape[-2], H=size, BS=k.shape[1] if table_SB is not None else 1,
        IS_PAGED=table_SB is not None, HAS_LSE=want_lse, IS_LONG=kept is not None,
        BLOCK_M=tile, BLOCK_N=BLOCK_N, CHUNK=CHUNK, num_warps=warps, num_stages=stages,
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
    PRECISION: tl.constexpr = "ieee" if q.dtype == tl.float32 else "tf32"
    if is_loaded is None:
        keys = tl.load(k_ptr + where)
        values = tl.load(v_ptr + where)
    else:
        keys = tl.load(k_ptr + where, mask=is_loaded, other=0.0)
        values = tl.load(v_ptr + where, mask=is_loaded, other=0.0)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    if is_seen is not None:
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    shift = new_top
    if is_seen is not None:  # a query may see nothing of its tile's last chunk
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    # a fused multiply-add by name: what the compiler makes of `a * b - c` may differ by kernel
    weights = tl.exp2(tl.fma(scores, scale, (-shift * scale)[:, None])).to(values.dtype)
    shrink = tl.exp2((top - shift) * scale)
    out = tl.dot(weights, values, out * shrink[:, None], input_precision=PRECISION)
    # summed by the tensor core too: the order of a plain sum depends on the layout of the tile
    ones = tl.full((BLOCK_N, 16), 1.0, values.dtype)
    total = tl.dot(weights, ones, total * shrink[:, None], input_precision=PRECISION)
    return out, new_top, total


@triton.jit
def merge(out, top, total, next_out, next_top, next_total, scale):
    """The state of some keys and of those that come after them; `total` in one column."""
    new_top = tl.maximum(top, next_top)
    share = tl.exp2((top - new_top) * scale)
    next_share = tl.exp2((next_top - new_top) * scale)
    out = tl.fma(next_out, next_share[:, None], out * share[:, None])
    return out, new_top, tl.fma(next_total, next_share, total * share)


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
def _fold_chunk(
    q, query, k_ptr, v_ptr, table_row_ptr, first_key, begin, whole, last, key_head, scale,
    K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr, IS_PAGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The state of a tile of queries after keys `begin` to `last`; all see those below `whole`."""
    out = tl.zeros((BLOCK_M, H), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M, 16), tl.float32)
    for start in range(begin, tl.minimum(whole, last), BLOCK_N):
        place, offsets = offsets_of(
            start, first_key, table_row_ptr, last, key_head, K, H, BS, IS_PAGED, True, BLOCK_N
        )
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, None, None, out, top, total, scale, BLOCK_N
        )
    for start in range(tl.maximum(whole, begin), last, BLOCK_N):
        place, offsets = offsets_of(
            start, first_key, table_row_ptr, last, key_head, K, H, BS, IS_PAGED, False, BLOCK_N
        )
        is_seen = (place[None, :] <= query[:, None]) & (place < last)[None, :]
        out, top, total = fold(
            q, k_ptr, v_ptr, offsets, (place < last)[:, None], is_seen, out, top, total, scale,
            BLOCK_N,
        )  # fmt: skip
    return out, top, tl.max(total, 1)  # all columns are equal


@triton.jit
def _attend_tile(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, kept_ptr, marks_ptr, bounds_ptr, key_bounds_ptr,
    lengths_ptr, table_ptr, table_stride, tokens, scale,
    N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, BS: tl.constexpr,
    IS_PAGED: tl.constexpr, HAS_LSE: tl.constexpr, IS_LONG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # the last tile of a sequence has the most to do, so it comes first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sequence = tl.program_id(1), tl.program_id(2)
    first = tl.load(bounds_ptr + sequence)
    count = tl.load(bounds_ptr + sequence + 1) - first
    if tile * BLOCK_M >= count:
        return
    key_head = head // (N // K)
    table_row_ptr = table_ptr
    if IS_PAGED:
        first_key = 0
        length = tl.load(lengths_ptr + sequence)
        table_row_ptr = table_ptr + sequence.to(tl.int64) * table_stride
    else:
        first_key = tl.load(key_bounds_ptr + sequence)
        length = tl.load(key_bounds_ptr + sequence + 1) - first_key
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = length - count + row  # its place in the sequence
    is_real = row < count
    where = ((first + row).to(tl.int64) * N + head)[:, None] * H + tl.arange(0, H)[None, :]
    mark = head.to(tl.int64) * tokens + first + row
    q = tl.load(q_ptr + where, mask=is_real[:, None], other=0.0)
    before = length - count + tile * BLOCK_M + 1  # keys that all queries of the tile see
    last = tl.minimum(length, before + BLOCK_M - 1)
    whole = before // BLOCK_N * BLOCK_N
    out, top, total = _fold_chunk(
        q, query, k_ptr, v_ptr, table_row_ptr, first_key, 0, whole, tl.minimum(last, CHUNK),
        key_head, scale, K, H, BS, IS_PAGED, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if IS_LONG:
        totals_ptr = marks_ptr + tokens * N
        for begin in range(CHUNK, last, CHUNK):
            # registers do not hold two states
            tl.store(kept_ptr + where, out, mask=is_real[:, None])
            tl.store(marks_ptr + mark, top, mask=is_real)
            tl.store(totals_ptr + mark, total, mask=is_real)
            next_out, next_top, next_total = _fold_chunk(
                q, query, k_ptr, v_ptr, table_row_ptr, first_key, begin, whole,
                tl.minimum(last, begin + CHUNK), key_head, scale, K, H, BS, IS_PAGED, BLOCK_M,
                BLOCK_N,
            )  # fmt: skip
            tl.debug_barrier()  # another thread may have written what this one reads
            out = tl.load(kept_ptr + where, mask=is_real[:, None], other=0.0)
            top = tl.load(marks_ptr + mark, mask=is_real, other=0.0)
            total = tl.load(totals_ptr + mark, mask=is_real, other=1.0)
            out, top, total = merge(out, top, total, next_out, next_top, next_total, scale)
    out = out / total[:, None]
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=is_real[:, None])
    if HAS_LSE:
        lse = (top * scale + tl.log2(total)) * 0.6931471805599453
        tl.store(lse_ptr + mark, lse, mask=is_real)
