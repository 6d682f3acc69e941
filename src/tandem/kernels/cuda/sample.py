"""Choosing tokens in Triton: no copy of the logits, no sort, no wait for the device.

A row's result depends on the row alone. Everything can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.cuda.rows import (
    BLOCK,
    block_statistics,
    combine,
    exponential,
    row_inverse,
)

_UNIFORM_BLOCK = 256


def uniform(seed_R: Tensor, prompt_R: Tensor, sample_R: Tensor, place_R: Tensor) -> Tensor:
    """As `sample.uniform`, the same bits."""
    words = [word.contiguous() for word in (seed_R, prompt_R, sample_R, place_R)]
    result = torch.empty(seed_R.shape, dtype=torch.float64, device=seed_R.device)
    if result.numel():
        grid = (triton.cdiv(result.numel(), _UNIFORM_BLOCK),)
        _uniform[grid](*words, result, result.numel(), BLOCK=_UNIFORM_BLOCK, num_warps=4)
    return result


def choose_tokens(
    logits_RV: Tensor,
    u_R: Tensor,
    temperature_R: Tensor,
    top_p_R: Tensor | None,
    top_k_R: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `sample.choose_tokens`."""
    rows, vocab = logits_RV.shape
    tokens_R = torch.empty(rows, dtype=torch.int64, device=logits_RV.device)
    logprobs_R = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
    if rows == 0:
        return tokens_R, logprobs_R
    blocks = block_statistics(logits_RV, temperature_R=temperature_R)
    columns = (logits_RV, u_R, temperature_R)
    statistics = (blocks.top, blocks.total, blocks.lse)
    results = (*statistics, tokens_R, logprobs_R, vocab, logits_RV.stride(0))
    shape = {"NUM_BLOCKS_PAD": blocks.num_blocks_pad, "BLOCK": BLOCK, "num_warps": 8}
    shape |= {"enable_fp_fusion": False}
    _choose[(rows,)](*columns, *results, blocks.num_blocks, **shape)
    if top_p_R is not None or top_k_R is not None:
        _choose_restricted[(rows,)](
            *columns, top_p_R, top_k_R, *results, blocks.num_blocks,
            HAS_TOP_P=top_p_R is not None, HAS_TOP_K=top_k_R is not None, **shape,
        )  # fmt: skip
    return tokens_R, logprobs_R


@triton.jit
def _mix(state):
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit
def _absorb(state, ptr, row, inside):
    word = tl.load(ptr + row, mask=inside, other=0).to(tl.uint64, bitcast=True)
    return _mix((state ^ word) + 0x9E3779B97F4A7C15)


@triton.jit
def _uniform(seed_ptr, prompt_ptr, sample_ptr, place_ptr, result_ptr, rows, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    state = tl.zeros((BLOCK,), dtype=tl.uint64)
    state = _absorb(state, seed_ptr, row, inside)
    state = _absorb(state, prompt_ptr, row, inside)
    state = _absorb(state, sample_ptr, row, inside)
    state = _absorb(state, place_ptr, row, inside)
    # 53 bits: the conversion from a signed word is exact
    u = (state >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16
    tl.store(result_ptr + row, u, mask=inside)


@triton.jit
def _load_block(logits_ptr, row, block, inverse, vocab, row_stride, BLOCK: tl.constexpr):
    column = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * row_stride + column, mask=column < vocab, other=float("-inf"))
    return column, x.to(tl.float32) * inverse


@triton.jit
def _store_choice(tokens_ptr, logprobs_ptr, row, column, x, token, lse):
    tl.store(tokens_ptr + row, token.to(tl.int64))
    tl.store(logprobs_ptr + row, tl.sum(tl.where(column == token, x, 0.0), axis=0) - lse)


@triton.jit
def _choose(
    logits_ptr, u_ptr, temperature_ptr, top_ptr, total_ptr, lse_ptr, tokens_ptr, logprobs_ptr,
    vocab, row_stride, num_blocks, NUM_BLOCKS_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    inverse = row_inverse(temperature_ptr, row)
    is_greedy = tl.load(temperature_ptr + row) <= 0
    top, masses = combine(top_ptr, total_ptr, row, num_blocks, NUM_BLOCKS_PAD)
    lse = tl.load(lse_ptr + row)
    blocks = tl.arange(0, NUM_BLOCKS_PAD)
    # the block: of the largest logit, or where the cumulative mass passes u
    tops = tl.load(top_ptr + row * num_blocks + blocks, mask=blocks < num_blocks, other=0.0)
    greedy_block = tl.min(tl.where((tops == top) & (blocks < num_blocks), blocks, num_blocks))
    reached = tl.cumsum(masses.to(tl.float64), axis=0)
    last_block = tl.max(tl.where(masses > 0, blocks, 0), axis=0)
    total = tl.sum(tl.where(blocks == last_block, reached, 0.0), axis=0)
    target = tl.load(u_ptr + row).to(tl.float64) * total
    passing = tl.where((reached > target) & (masses > 0), blocks, last_block)
    block = tl.where(is_greedy, greedy_block, tl.min(passing, axis=0))
    chosen = blocks == block
    mass = tl.sum(tl.where(chosen, masses.to(tl.float64), 0.0), axis=0)
    before = tl.sum(tl.where(chosen, reached, 0.0), axis=0) - mass
    # the token inside it, at the same share of the block's mass as summed anew
    column, x = _load_block(logits_ptr, row, block, inverse, vocab, row_stride, BLOCK)
    inner_masses = exponential(x - top).to(tl.float64)
    inner = tl.cumsum(inner_masses, axis=0)
    last = tl.max(tl.where(inner_masses > 0, column, 0), axis=0)
    inner_total = tl.sum(tl.where(column == last, inner, 0.0), axis=0)
    inner_target = (target - before) / mass * inner_total
    passing = tl.where((inner > inner_target) & (inner_masses > 0), column, last)
    greedy = tl.min(tl.where(x == top, column, 2147483647), axis=0)
    token = tl.where(is_greedy, greedy, tl.min(passing, axis=0))
    _store_choice(tokens_ptr, logprobs_ptr, row, column, x, token, lse)


@triton.jit
def _order(x):
    """An int32 that orders as its float does."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _above(
    bound, logits_ptr, row, inverse, top, top_ptr, vocab, row_stride, num_blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """How many logits of a row are at or above a bound (as `_order`), and their mass."""
    count = tl.zeros((), dtype=tl.int64)
    mass = tl.zeros((), dtype=tl.float64)
    for block in range(num_blocks):
        # most blocks hold nothing so large
        if _order(tl.load(top_ptr + row * num_blocks + block)).to(tl.int64) >= bound:
            column, x = _load_block(logits_ptr, row, block, inverse, vocab, row_stride, BLOCK)
            is_above = (_order(x).to(tl.int64) >= bound) & (column < vocab)
            count += tl.sum(is_above.to(tl.int64), axis=0)
            share = tl.where(is_above, exponential(x - top), 0.0)
            mass += tl.sum(share, axis=0).to(tl.float64)
    return count, mass


@triton.jit
def _boundary(
    by_mass: tl.constexpr, wanted_count, wanted_mass, logits_ptr, row, inverse, top, top_ptr, vocab,
    row_stride, num_blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest bound at or above which lie enough logits, or enough mass; and what lies above
    it alone."""
    low = tl.full((), -2147483648, dtype=tl.int64)
    high = _order(top).to(tl.int64) + 1
    above_count = tl.zeros((), dtype=tl.int64)
    above_mass = tl.zeros((), dtype=tl.float64)
    while low + 1 < high:
        middle = (low + high) >> 1
        count, mass = _above(
            middle, logits_ptr, row, inverse, top, top_ptr, vocab, row_stride, num_blocks, BLOCK
        )
        is_enough = mass >= wanted_mass if by_mass else count >= wanted_count
        low = tl.where(is_enough, middle, low)
        high = tl.where(is_enough, high, middle)
        above_count = tl.where(is_enough, above_count, count)
        above_mass = tl.where(is_enough, above_mass, mass)
    return low, above_count, above_mass


@triton.jit
def _cut(
    top_p, top_k, logits_ptr, row, inverse, top, total, top_ptr, vocab, row_stride, num_blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The least logit that is kept (as `_order`), how many of exactly it are, and the mass kept."""
    bound = tl.full((), -2147483648, dtype=tl.int64)
    num_ties = tl.full((), 2147483647, dtype=tl.int64)
    kept = total
    if (top_k > 0) & (top_k < vocab):
        bound, count, mass = _boundary(
            False, top_k, 0.0, logits_ptr, row, inverse, top, top_ptr, vocab, row_stride,
            num_blocks, BLOCK,
        )  # fmt: skip
        num_ties = top_k - count
        kept = mass + num_ties.to(tl.float64) * _mass_of(bound, top)
    if top_p < 1:
        wanted = top_p.to(tl.float64) * kept
        p_bound, count, mass = _boundary(
            True, 0, wanted, logits_ptr, row, inverse, top, top_ptr, vocab, row_stride,
            num_blocks, BLOCK,
        )  # fmt: skip
        if p_bound >= bound:
            share = _mass_of(p_bound, top)
            num_p_ties = tl.maximum(tl.ceil((wanted - mass) / share).to(tl.int64), 1)
            num_ties = tl.where(p_bound == bound, tl.minimum(num_ties, num_p_ties), num_p_ties)
            bound = p_bound
            kept = mass + num_ties.to(tl.float64) * share
    return bound, num_ties, kept


@triton.jit
def _mass_of(bound, top):
    """The mass of one token whose logit, as `_order`, is `bound`."""
    order = bound.to(tl.int32)
    x = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return exponential(x - top).to(tl.float64)


@triton.jit
def _choose_restricted(
    logits_ptr, u_ptr, temperature_ptr, top_p_ptr, top_k_ptr, top_ptr, total_ptr, lse_ptr,
    tokens_ptr, logprobs_ptr, vocab, row_stride, num_blocks, HAS_TOP_P: tl.constexpr,
    HAS_TOP_K: tl.constexpr, NUM_BLOCKS_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Chooses anew where top-k or top-p says so; other rows cost a launch and two loads."""
    row = tl.program_id(0).to(tl.int64)
    top_p = tl.full((), 1.0, dtype=tl.float32)
    top_k = tl.full((), -1, dtype=tl.int64)
    if HAS_TOP_P:
        top_p = tl.load(top_p_ptr + row).to(tl.float32)
    if HAS_TOP_K:
        top_k = tl.load(top_k_ptr + row).to(tl.int64)
    is_restricted = (top_p < 1) | ((top_k > 0) & (top_k < vocab))
    if is_restricted & (tl.load(temperature_ptr + row) > 0):
        inverse = row_inverse(temperature_ptr, row)
        top, masses = combine(top_ptr, total_ptr, row, num_blocks, NUM_BLOCKS_PAD)
        lse = tl.load(lse_ptr + row)
        bound, num_ties, kept = _cut(
            top_p, top_k, logits_ptr, row, inverse, top, tl.sum(masses.to(tl.float64), axis=0),
            top_ptr, vocab, row_stride, num_blocks, BLOCK,
        )  # fmt: skip
        target = tl.load(u_ptr + row).to(tl.float64) * kept
        reached = tl.zeros((), dtype=tl.float64)
        ties = tl.zeros((), dtype=tl.int64)
        token = tl.full((), -1, dtype=tl.int32)
        last = tl.zeros((), dtype=tl.int32)
        for block in range(num_blocks):
            if _order(tl.load(top_ptr + row * num_blocks + block)).to(tl.int64) >= bound:
                column, x = _load_block(logits_ptr, row, block, inverse, vocab, row_stride, BLOCK)
                order = _order(x).to(tl.int64)
                is_tie = (order == bound) & (column < vocab)
                tie_rank = ties + tl.cumsum(is_tie.to(tl.int64), axis=0)
                is_kept = (order > bound) & (column < vocab) | is_tie & (tie_rank <= num_ties)
                shares = tl.where(is_kept, exponential(x - top), 0.0).to(tl.float64)
                passing = is_kept & (reached + tl.cumsum(shares, axis=0) > target) & (shares > 0)
                first = tl.min(tl.where(passing, column, 2147483647), axis=0)
                token = tl.where((token < 0) & (first < 2147483647), first, token)
                last = tl.maximum(last, tl.max(tl.where(is_kept, column, 0), axis=0))
                reached += tl.sum(shares, axis=0)
                ties += tl.sum(is_tie.to(tl.int64), axis=0)
        token = tl.where(token < 0, last, token)
        x = tl.load(logits_ptr + row * row_stride + token).to(tl.float32) * inverse
        tl.store(tokens_ptr + row, token.to(tl.int64))
        tl.store(logprobs_ptr + row, x - lse)
