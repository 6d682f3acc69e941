"""Log-probs of given tokens, straight from hidden states, without a `[T, V]` tensor in fp32.

The ranks of a tensor axis may each have some rows of the head: those of the tokens from
`vocab_start` on. Each works on its own columns of logits; what a row needs of all of them is three
numbers a rank, gathered once for all rows.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tandem.kernels.device import is_fused
from tandem.kernels.linear import invariant_linear
from tandem.parallel.collectives import gather, sum_
from tandem.parallel.mesh import ALONE, Axis

_CHUNK_BYTES_CPU = 1 << 23  # fp32 logits of a chunk stay in the cache
_CHUNK_BYTES_CUDA = 5 << 26  # 512 rows at a vocabulary of 151,936: enough to keep matmuls busy
_MIN_CHUNK = 16
_TILE_ROWS = 128  # of a matmul on CUDA: the last tile should be full
_EVEN_VOCAB = 8  # bf16 values in 16 bytes
_CHUNKS_TOGETHER = 8
"""Chunks whose gradients of logits, bf16, wait for one product with the hidden states: adding to
the weight's gradient costs reading and writing it, 1.6 GB in fp32 for that vocabulary."""

_NOTHING = -1e30
"""The logit of a masked token: finite, so that a rank may have masked all of its own."""

TopMask = tuple[Tensor, Tensor]
"""Token ids that may be chosen, `[M]` int64, and where each row's begin in it, `[T + 1]` int64."""


def token_logprobs(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    temperature: float = 1.0,
    chunk: int = -1,
    want_entropy: bool = False,
    entropy_needs_grad: bool = False,
    top_mask: TopMask | None = None,
    invariant: bool = False,
    keep_bytes: int = 0,
    axis: Axis = ALONE,
    vocab_start: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs `[T]` of `targets_T`, and the entropy `[T]` in nats when asked for, both fp32.

    log-softmax(hidden @ weight.T / temperature)[target], softmax in fp32. Rows are worked on in
    chunks, in the forward and in the backward pass (which computes the logits again), so memory
    does not grow with T; `chunk` rows at a time, or what fits a fixed number of bytes if it is
    below 1. The entropy has a gradient only if `entropy_needs_grad`. With `top_mask`, a row that
    names any tokens is normalised over these and its target alone; the entropy never is.
    `invariant` makes the bits of a row independent of the other rows, and equal to those of
    `choose_tokens` on `head_logits(..., invariant=True)`. With `keep_bytes`, the first rows whose
    log-probs of all tokens fit in so much memory, in the dtype of `hidden_TD`, keep them for the
    backward pass, which is spared a quarter of its products.

    On an `axis` of several ranks, `weight_VD` is this rank's rows, from token `vocab_start` on, and
    hidden states, targets, results and their gradients are equal on all of them.
    """
    ask = _Ask(
        inverse=float(torch.tensor(1.0, device="cpu") / torch.tensor(temperature, device="cpu")),
        chunk=chunk if chunk > 0 else _fitting_chunk(weight_VD),
        want_entropy=want_entropy or entropy_needs_grad,
        entropy_needs_grad=entropy_needs_grad,
        invariant=invariant,
        keep_rows=keep_bytes // (len(weight_VD) * hidden_TD.element_size()),
        axis=axis,
    )
    ids_M, starts_T = top_mask if top_mask is not None else (None, None)
    if axis.size > 1:
        targets_T = _rows_of(targets_T, vocab_start, len(weight_VD))
        ids_M = None if ids_M is None else _rows_of(ids_M, vocab_start, len(weight_VD))
    logprobs_T, entropy_T = _TokenLogprobs.apply(
        hidden_TD, weight_VD, targets_T, ids_M, starts_T, ask
    )
    return logprobs_T, entropy_T


def head_logits(hidden_RD: Tensor, weight_VD: Tensor, invariant: bool = False) -> Tensor:
    """Logits `[R, V]` fp32, the products of bf16 inputs summed and left in fp32.

    Rounding them to bf16 would cost log-probs of likely tokens up to 2^-8 of their logit.

    cuBLAS gives a row other bits among few rows than among many where rows of logits do not begin
    at 16 bytes (141, 282 and 50,257 tokens; with none of ten other sizes tried on an H200).
    """
    is_odd = hidden_RD.dtype != torch.float32 and len(weight_VD) % _EVEN_VOCAB
    if invariant or (is_odd and is_fused(hidden_RD)):
        return invariant_linear(hidden_RD, weight_VD, out_dtype=torch.float32)
    if hidden_RD.is_cuda and hidden_RD.dtype != torch.float32:
        return torch.ops.aten.mm.dtype(hidden_RD, weight_VD.t(), torch.float32)
    return torch.mm(hidden_RD, weight_VD.t()).float()


@dataclasses.dataclass(frozen=True, slots=True)
class _Ask:
    inverse: float  # 1 / temperature, rounded to fp32: choose_tokens multiplies by the same
    chunk: int
    want_entropy: bool
    entropy_needs_grad: bool
    invariant: bool
    keep_rows: int
    axis: Axis

    def num_kept(self, num_rows: int) -> int:
        """Whole chunks, so that what is kept does not change what is computed together."""
        whole = self.keep_rows - self.keep_rows % self.chunk
        return num_rows if self.keep_rows >= num_rows else whole


class _Saved(NamedTuple):
    """What the forward pass leaves for the backward pass, unpacked once."""

    hidden_TD: Tensor
    weight_VD: Tensor
    targets_T: Tensor  # rows of the head; the number of its rows: another rank's
    ids_M: Tensor | None
    starts_T: Tensor | None
    lse_T: Tensor
    full_lse_T: Tensor  # of the unmasked row
    entropy_T: Tensor | None
    shift_T: Tensor | None  # of what was kept to log-probs; None: nothing


def _rows_of(tokens: Tensor, start: int, size: int) -> Tensor:
    """The rows of `tokens` in a head of `size` tokens from `start` on; `size` for all others."""
    rows = tokens - start
    return rows.where((rows >= 0) & (rows < size), size)


def _fitting_chunk(weight_VD: Tensor) -> int:
    budget = _CHUNK_BYTES_CUDA if weight_VD.is_cuda else _CHUNK_BYTES_CPU
    rows = budget // (4 * weight_VD.shape[0])
    return max(_MIN_CHUNK, rows - rows % (_TILE_ROWS if rows >= _TILE_ROWS else _MIN_CHUNK))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, targets_T, ids_M, starts_T, ask):
        num_rows = len(hidden_TD)
        fresh = {"dtype": torch.float32, "device": hidden_TD.device}
        logprobs_T, lse_T = torch.empty(num_rows, **fresh), torch.empty(num_rows, **fresh)
        full_lse_T = torch.empty(num_rows, **fresh) if starts_T is not None else lse_T
        entropy_T = torch.empty(num_rows, **fresh) if ask.want_entropy else None
        has_gradient = starts_T is None and any(ctx.needs_input_grad[:2])
        kept = hidden_TD.new_empty(ask.num_kept(num_rows) if has_gradient else 0, len(weight_VD))
        for rows in _chunks(0, num_rows, ask.chunk):
            logits = head_logits(hidden_TD[rows], weight_VD, ask.invariant)
            target = targets_T[rows]
            logprobs_T[rows], full_lse_T[rows], entropy = _row_logprobs(logits, target, ask)
            if rows.stop <= len(kept):
                _keep(logits, lse_T[rows], ask.inverse, kept[rows])
            if entropy_T is not None and entropy is not None:
                entropy_T[rows] = entropy
            if starts_T is not None:
                _mask(logits, target, ids_M, starts_T, rows)
                logprobs_T[rows], lse_T[rows], _ = _row_logprobs(logits, target, ask)
        shift_T = None
        if ask.axis.size > 1 and num_rows:
            is_here_T, own_lse_T = targets_T < len(weight_VD), lse_T
            ranks = (is_here_T, ask.axis)
            logprobs_T, lse_T, whole_T = _over_ranks(logprobs_T, lse_T, entropy_T, *ranks)
            if starts_T is not None:
                _, full_lse_T, whole_T = _over_ranks(logprobs_T, full_lse_T, entropy_T, *ranks)
            else:
                full_lse_T = lse_T
            entropy_T, shift_T = whole_T, lse_T - own_lse_T
        ctx.ask, ctx.kept = ask, kept
        ctx.save_for_backward(
            hidden_TD, weight_VD, targets_T, ids_M, starts_T, lse_T, full_lse_T, entropy_T, shift_T
        )
        if entropy_T is not None and not ask.entropy_needs_grad:
            ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx, grad_T, grad_entropy_T):
        saved = _Saved(*ctx.saved_tensors)
        hidden_TD, weight_VD = saved.hidden_TD, saved.weight_VD
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grads = (grad_T, grad_entropy_T if ctx.ask.entropy_needs_grad else None)
        grad_hidden_TD = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight_VD = None
        for block, part in _blocks(saved, ctx.ask, ctx.kept, grads):
            if grad_hidden_TD is not None:
                torch.mm(part, weight_VD, out=grad_hidden_TD[block])
            if needs_weight:
                grad_weight_VD = _accumulate(grad_weight_VD, part, hidden_TD[block])
        ctx.kept = None  # overwritten; a second backward pass computes anew
        if grad_hidden_TD is not None and len(grad_hidden_TD):
            sum_(grad_hidden_TD, ctx.ask.axis)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        elif needs_weight:
            grad_weight_VD = torch.zeros_like(weight_VD)
        return grad_hidden_TD, grad_weight_VD, None, None, None, None


def _blocks(saved: _Saved, ask: _Ask, kept: Tensor | None, grads) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows with the gradients of their logits, in the dtype of the hidden states."""
    num_rows, num_kept = len(saved.hidden_TD), 0 if kept is None else len(kept)
    if kept is not None and num_kept:
        rows = slice(0, num_kept)
        _logits_gradient(saved, ask, rows, *grads, out=kept, kept=kept)
        yield rows, kept
    together = ask.chunk * _CHUNKS_TOGETHER if saved.hidden_TD.is_cuda else ask.chunk
    shape = (min(together, num_rows - num_kept), len(saved.weight_VD))
    grad_logits = saved.hidden_TD.new_empty(shape)
    for block in _chunks(num_kept, num_rows, together):
        for rows in _chunks(block.start, block.stop, ask.chunk):
            out = grad_logits[rows.start - block.start : rows.stop - block.start]
            _logits_gradient(saved, ask, rows, *grads, out=out)
        yield block, grad_logits[: block.stop - block.start]


def _chunks(start: int, stop: int, chunk: int) -> list[slice]:
    return [slice(at, min(at + chunk, stop)) for at in range(start, stop, chunk)]


def _row_logprobs(
    logits: Tensor, target: Tensor, ask: _Ask
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs of the targets, log-sum-exps and entropies of a chunk of fp32 logits.

    The log-prob of a target that is another rank's is that of any token.
    """
    if ask.axis.size > 1:
        target = target.clamp(max=logits.shape[1] - 1)
    if is_fused(logits):
        from tandem.kernels.cuda import head as fused

        return fused.row_logprobs(logits, target, ask.inverse, ask.want_entropy)
    scaled = logits if ask.inverse == 1 else logits * ask.inverse
    lse = torch.logsumexp(scaled, dim=-1)
    logprobs = scaled.gather(1, target[:, None])[:, 0] - lse
    if not ask.want_entropy:
        return logprobs, lse, None
    # -sum p log p, as lse - sum p x: no row of log-probs is made
    return logprobs, lse, lse - torch.linalg.vecdot((scaled - lse[:, None]).exp_(), scaled)


def _over_ranks(
    logprobs_T: Tensor, lse_T: Tensor, entropy_T: Tensor | None, is_here_T: Tensor, axis: Axis
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs, log-sum-exps and entropies of whole rows, from those of each rank's columns."""
    target_T = (logprobs_T + lse_T).where(is_here_T, 0)
    columns = [lse_T, target_T] if entropy_T is None else [lse_T, target_T, lse_T - entropy_T]
    parts_RCT = torch.stack(gather(torch.stack(columns), axis))  # R ranks, C columns
    total_T = parts_RCT[:, 0].logsumexp(0)
    logprobs_T = parts_RCT[:, 1].sum(0) - total_T
    if entropy_T is None:
        return logprobs_T, total_T, None
    means_RT = parts_RCT[:, 2] * (parts_RCT[:, 0] - total_T).exp()
    return logprobs_T, total_T, total_T - means_RT.sum(0)


def _keep(logits: Tensor, lse: Tensor, inverse: float, out: Tensor) -> None:
    """Writes log-probs of all tokens: rounding to bf16 moves a probability p by p log p / 512."""
    if is_fused(logits):
        from tandem.kernels.cuda import head as fused

        fused.all_logprobs(logits, lse, inverse, out)
        return
    out.copy_(logits.mul_(inverse).sub_(lse[:, None]))


def _logits_gradient(
    saved: _Saved,
    ask: _Ask,
    rows: slice,
    grad_T: Tensor,
    grad_entropy_T: Tensor | None,
    *,
    out: Tensor,
    kept: Tensor | None = None,
) -> None:
    """Writes the gradient with respect to the logits of a chunk into `out`.

    From the log-probs of all tokens that were kept, or else from the logits, computed again.
    """
    if kept is None:
        logits = head_logits(saved.hidden_TD[rows], saved.weight_VD, ask.invariant)
        scale, lse = ask.inverse, saved.lse_T[rows]
    else:
        logits, scale = kept, 1.0
        lse = torch.zeros_like(saved.lse_T[rows]) if saved.shift_T is None else saved.shift_T[rows]
    target, grad = saved.targets_T[rows], grad_T[rows]
    entropy = grad_entropy = None
    if grad_entropy_T is not None and saved.entropy_T is not None:
        entropy, grad_entropy = saved.entropy_T[rows], grad_entropy_T[rows]
    if is_fused(logits) and saved.starts_T is None:
        from tandem.kernels.cuda import head as fused

        columns = (target, lse, grad, scale, ask.inverse, entropy, grad_entropy)
        fused.logits_gradient(logits, *columns, out)
        return
    logits = logits.float().mul_(scale)
    pull = None
    if entropy is not None and grad_entropy is not None:
        # dH / dx = -p (log p + H)
        logp = logits - (lse if kept is not None else saved.full_lse_T[rows])[:, None]
        pull = logp.exp().mul_(logp.add_(entropy[:, None])).mul_(grad_entropy[:, None])
    if saved.ids_M is not None and saved.starts_T is not None:
        _mask(logits, target, saved.ids_M, saved.starts_T, rows)
    # d log p[target] / dx = onehot - p
    grad_logits = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
    if ask.axis.size > 1:
        grad = grad.where(target < logits.shape[1], 0)
        target = target.clamp(max=logits.shape[1] - 1)
    grad_logits.scatter_add_(1, target[:, None], grad[:, None])
    if pull is not None:
        grad_logits.sub_(pull)
    out.copy_(grad_logits.mul_(ask.inverse))


def _accumulate(total_VD: Tensor | None, grad_logits: Tensor, hidden: Tensor) -> Tensor:
    """`total + grad_logits.T @ hidden`, in place, fp32: a sum over many chunks."""
    turned = grad_logits.t()
    if hidden.dtype == torch.float32:
        return torch.mm(turned, hidden) if total_VD is None else total_VD.addmm_(turned, hidden)
    if not hidden.is_cuda:
        part = torch.mm(turned, hidden)
        return part.float() if total_VD is None else total_VD.add_(part)
    if total_VD is None:
        return torch.ops.aten.mm.dtype(turned, hidden, torch.float32)
    return torch.ops.aten.addmm.dtype_out(total_VD, turned, hidden, torch.float32, out=total_VD)


def _mask(logits: Tensor, target: Tensor, ids_M: Tensor, starts_T: Tensor, rows: slice) -> None:
    """Masks tokens that a row which names any does not name, but for its target."""
    starts, vocab = starts_T[rows.start : rows.stop + 1], logits.shape[1]
    counts = starts.diff()
    # the last column is for tokens of other ranks
    keep = (counts == 0)[:, None].repeat(1, vocab + 1)
    row_M = torch.arange(len(target), device=logits.device).repeat_interleave(counts)
    keep[row_M, ids_M[starts[0] : starts[-1]]] = True
    keep.scatter_(1, target[:, None], True)
    logits.masked_fill_(~keep[:, :vocab], _NOTHING)
