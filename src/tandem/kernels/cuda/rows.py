"""Statistics of rows of logits in Triton, shared by sampling and the log-prob head.

A row is cut into blocks of fixed size; each block leaves its largest logit, its mass relative to
that, and (when asked) its mass times logit. One kernel makes a log-sum-exp of them for both users:
the order of a sum depends on a kernel's number of warps, and equal logits shall give equal bits of
log-prob in the engine and in the trainer.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


class BlockStatistics(NamedTuple):
    """Of each block of each row, `[R, blocks]` fp32."""

    top: Tensor
    total: Tensor
    weighted: Tensor | None
    lse: Tensor  # [R]

    @property
    def num_blocks(self) -> int:
        return self.top.shape[1]

    @property
    def num_blocks_pad(self) -> int:
        return triton.next_power_of_2(self.top.shape[1])


def block_statistics(
    logits_RV: Tensor,
    inverse: float = 1.0,
    temperature_R: Tensor | None = None,
    want_weighted: bool = False,
) -> BlockStatistics:
    """Of logits times `inverse`, or divided by each row's temperature (1 where that is 0)."""
    rows, vocab = logits_RV.shape
    assert logits_RV.stride(1) == 1, "a row of logits must be contiguous"
    blocks = triton.cdiv(vocab, BLOCK)
    columns = torch.empty(
        2 + want_weighted, rows, blocks, dtype=torch.float32, device=logits_RV.device
    )
    top, total, weighted = columns[0], columns[1], columns[2] if want_weighted else None
    lse = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
    if rows:
        _block_statistics[(blocks, rows)](
            logits_RV, temperature_R, inverse, top, total, weighted, vocab, logits_RV.stride(0),
            BLOCK=BLOCK, HAS_TEMPERATURE=temperature_R is not None, WANT_WEIGHTED=want_weighted,
            num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
        _row_lse[(rows,)](
            top, total, lse, blocks, NUM_BLOCKS_PAD=triton.next_power_of_2(blocks), num_warps=1,
            enable_fp_fusion=False,
        )  # fmt: skip
    return BlockStatistics(top, total, weighted, lse)


@triton.jit
def row_inverse(temperature_ptr, row):
    """One over the temperature, correctly rounded; 1 for a greedy row."""
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    return tl.where(
        temperature > 0, tl.div_rn(1.0, tl.where(temperature > 0, temperature, 1.0)), 1.0
    )


@triton.jit
def exponential(x):
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _block_statistics(
    logits_ptr, temperature_ptr, inverse, top_ptr, total_ptr, weighted_ptr, vocab, row_stride,
    BLOCK: tl.constexpr, HAS_TEMPERATURE: tl.constexpr, WANT_WEIGHTED: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    x = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=float("-inf"))
    if HAS_TEMPERATURE:
        inverse = row_inverse(temperature_ptr, row)
    x = x.to(tl.float32) * inverse
    top = tl.max(x, axis=0)
    # a block of nothing but -inf has mass 0, not NaN
    mass = exponential(x - tl.where(top > float("-inf"), top, 0.0))
    place = row * tl.num_programs(0) + block
    tl.store(top_ptr + place, top)
    tl.store(total_ptr + place, tl.sum(mass, axis=0))
    if WANT_WEIGHTED:
        weighted = tl.sum(tl.where(x > float("-inf"), mass * x, 0.0), axis=0)
        tl.store(weighted_ptr + place, weighted)


@triton.jit
def _row_lse(top_ptr, total_ptr, lse_ptr, num_blocks, NUM_BLOCKS_PAD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top, masses = combine(top_ptr, total_ptr, row, num_blocks, NUM_BLOCKS_PAD)
    tl.store(lse_ptr + row, top + tl.log(tl.sum(masses, axis=0)))


@triton.jit
def combine(top_ptr, total_ptr, row, num_blocks, NUM_BLOCKS_PAD: tl.constexpr):
    """The row's largest logit, and each block's mass relative to it."""
    block = tl.arange(0, NUM_BLOCKS_PAD)
    inside = block < num_blocks
    tops = tl.load(top_ptr + row * num_blocks + block, mask=inside, other=float("-inf"))
    totals = tl.load(total_ptr + row * num_blocks + block, mask=inside, other=0.0)
    top = tl.max(tops, axis=0)
    return top, totals * exponential(tops - top)
