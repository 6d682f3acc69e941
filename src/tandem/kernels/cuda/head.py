"""Log-probs of given tokens from fp32 logits in Triton, and the gradient of the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.cuda.rows import BLOCK, block_statistics, exponential


def row_logprobs(
    logits_RV: Tensor, targets_R: Tensor, inverse: float, want_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs of the targets, log-sum-exps and entropies of rows of logits times `inverse`."""
    rows = len(logits_RV)
    columns = torch.empty(1 + want_entropy, rows, dtype=torch.float32, device=logits_RV.device)
    logprobs_R, entropy_R = columns[0], columns[1] if want_entropy else None
    blocks = block_statistics(logits_RV, inverse, want_weighted=want_entropy)
    if rows:
        _row_logprobs[(rows,)](
            logits_RV, targets_R, blocks.top, blocks.weighted, blocks.lse, logprobs_R, entropy_R,
            inverse, blocks.num_blocks, logits_RV.stride(0), NUM_BLOCKS_PAD=blocks.num_blocks_pad,
            WANT_ENTROPY=want_entropy, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return logprobs_R, blocks.lse, entropy_R


def logits_gradient(
    logits_RV: Tensor,
    targets_R: Tensor,
    lse_R: Tensor,
    grad_R: Tensor,
    scale: float,
    inverse: float,
    entropy_R: Tensor | None,
    grad_entropy_R: Tensor | None,
    out_RV: Tensor,
) -> None:
    """Writes the gradient with respect to the logits before `inverse` into `out_RV`, in its dtype.

    Log-probs are `logits * scale - lse`; without `grad_entropy_R` no entropy is needed. `out_RV`
    may be `logits_RV`.
    """
    rows, vocab = logits_RV.shape
    if rows:
        _logits_gradient[(triton.cdiv(vocab, BLOCK), rows)](
            logits_RV, targets_R, lse_R, grad_R.contiguous(), entropy_R,
            None if grad_entropy_R is None else grad_entropy_R.contiguous(), out_RV, scale, inverse,
            vocab, logits_RV.stride(0), out_RV.stride(0), BLOCK=BLOCK,
            HAS_ENTROPY=grad_entropy_R is not None, num_warps=8,
        )  # fmt: skip


def all_logprobs(logits_RV: Tensor, lse_R: Tensor, inverse: float, out_RV: Tensor) -> None:
    """Writes `logits * inverse - lse` into `out_RV`, in its dtype."""
    rows, vocab = logits_RV.shape
    if rows:
        _all_logprobs[(triton.cdiv(vocab, BLOCK), rows)](
            logits_RV, lse_R, out_RV, inverse, vocab, logits_RV.stride(0), out_RV.stride(0),
            BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip


@triton.jit
def _all_logprobs(
    logits_ptr, lse_ptr, out_ptr, inverse, vocab, row_stride, out_stride, BLOCK: tl.constexpr
):
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    x = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    logp = (x * inverse - tl.load(lse_ptr + row)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + column, logp, mask=inside)


@triton.jit
def _row_logprobs(
    logits_ptr, targets_ptr, top_ptr, weighted_ptr, lse_ptr, logprobs_ptr, entropy_ptr, inverse,
    num_blocks, row_stride, NUM_BLOCKS_PAD: tl.constexpr, WANT_ENTROPY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lse = tl.load(lse_ptr + row)
    target = tl.load(targets_ptr + row)
    x = tl.load(logits_ptr + row * row_stride + target).to(tl.float32) * inverse
    tl.store(logprobs_ptr + row, x - lse)  # without fusing, as the sampler's: see `rows`
    if WANT_ENTROPY:
        # -sum p log p = lse - sum p x
        block = tl.arange(0, NUM_BLOCKS_PAD)
        inside = block < num_blocks
        tops = tl.load(top_ptr + row * num_blocks + block, mask=inside, other=float("-inf"))
        weighted = tl.load(weighted_ptr + row * num_blocks + block, mask=inside, other=0.0)
        mean = tl.sum(weighted * exponential(tops - lse), axis=0)
        tl.store(entropy_ptr + row, lse - mean)


@triton.jit
def _logits_gradient(
    logits_ptr, targets_ptr, lse_ptr, grad_ptr, entropy_ptr, grad_entropy_ptr, out_ptr, scale,
    inverse, vocab, row_stride, out_stride, BLOCK: tl.constexpr, HAS_ENTROPY: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    x = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=float("-inf"))
    logp = x.to(tl.float32) * scale - tl.load(lse_ptr + row)
    p = exponential(logp)
    is_target = (column == tl.load(targets_ptr + row)).to(tl.float32)
    # d log p[target] / dx = onehot - p
    grad = (is_target - p) * tl.load(grad_ptr + row)
    if HAS_ENTROPY:
        # dH / dx = -p (log p + H)
        pull = tl.where(p > 0, p * (logp + tl.load(entropy_ptr + row)), 0.0)
        grad -= pull * tl.load(grad_entropy_ptr + row)
    out = (grad * inverse).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + column, out, mask=inside)
