"""Log-probs of given tokens, straight from hidden states, without a `[T, V]` tensor in fp32."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK_BYTES_CPU = 1 << 23  # fp32 logits of a chunk stay in the cache
_CHUNK_BYTES_CUDA = 1 << 27
_MIN_CHUNK = 16

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
) -> tuple[Tensor, Tensor | None]:
    """Log-probs `[T]` of `targets_T`, and the entropy `[T]` in nats when asked for, both fp32.

    log-softmax(hidden @ weight.T / temperature)[target], softmax in fp32. Rows are worked on in
    chunks, in the forward and in the backward pass (which computes the logits again), so memory
    does not grow with T; `chunk` rows at a time, or what fits a fixed number of bytes if it is
    below 1. The entropy has a gradient only if `entropy_needs_grad`. With `top_mask`, a row that
    names any tokens is normalised over these and its target alone; the entropy never is.
    """
    ask = _Ask(
        inverse=float(torch.tensor(1.0) / torch.tensor(temperature)),
        chunk=chunk if chunk > 0 else _fitting_chunk(weight_VD),
        want_entropy=want_entropy or entropy_needs_grad,
        entropy_needs_grad=entropy_needs_grad,
    )
    ids_M, starts_T = top_mask if top_mask is not None else (None, None)
    logprobs_T, entropy_T = _TokenLogprobs.apply(
        hidden_TD, weight_VD, targets_T, ids_M, starts_T, ask
    )
    return logprobs_T, entropy_T


@dataclasses.dataclass(frozen=True, slots=True)
class _Ask:
    inverse: float  # 1 / temperature, rounded to fp32: choose_tokens multiplies by the same
    chunk: int
    want_entropy: bool
    entropy_needs_grad: bool


def _fitting_chunk(weight_VD: Tensor) -> int:
    budget = _CHUNK_BYTES_CUDA if weight_VD.is_cuda else _CHUNK_BYTES_CPU
    rows = budget // (4 * weight_VD.shape[0])
    return max(_MIN_CHUNK, rows - rows % _MIN_CHUNK)


class _Saved(NamedTuple):
    """What the forward pass leaves for the backward pass, unpacked once."""

    hidden_TD: Tensor
    weight_VD: Tensor
    targets_T: Tensor
    ids_M: Tensor | None
    starts_T: Tensor | None
    lse_T: Tensor
    full_lse_T: Tensor  # of the unmasked row
    entropy_T: Tensor | None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, targets_T, ids_M, starts_T, ask):
        num_rows = len(hidden_TD)
        fresh = {"dtype": torch.float32, "device": hidden_TD.device}
        logprobs_T, lse_T = torch.empty(num_rows, **fresh), torch.empty(num_rows, **fresh)
        full_lse_T = torch.empty(num_rows, **fresh) if starts_T is not None else lse_T
        entropy_T = torch.empty(num_rows, **fresh) if ask.want_entropy else None
        for rows in _chunks(num_rows, ask.chunk):
            logits = _logits(hidden_TD[rows], weight_VD, ask.inverse)
            target = targets_T[rows]
            full_lse_T[rows] = torch.logsumexp(logits, dim=-1)
            if entropy_T is not None:
                entropy_T[rows] = _entropy(logits, full_lse_T[rows])
            if starts_T is not None:
                _mask(logits, target, ids_M, starts_T, rows)
                lse_T[rows] = torch.logsumexp(logits, dim=-1)
            logprobs_T[rows] = logits.gather(1, target[:, None])[:, 0] - lse_T[rows]
        ctx.ask = ask
        ctx.save_for_backward(
            hidden_TD, weight_VD, targets_T, ids_M, starts_T, lse_T, full_lse_T, entropy_T
        )
        if entropy_T is not None and not ask.entropy_needs_grad:
            ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx, grad_T, grad_entropy_T):
        saved = _Saved(*ctx.saved_tensors)
        hidden_TD, weight_VD = saved.hidden_TD, saved.weight_VD
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_TD = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight_VD = None
        if not ctx.ask.entropy_needs_grad:
            grad_entropy_T = None
        for rows in _chunks(len(hidden_TD), ctx.ask.chunk):
            grad_logits = _grad_logits(saved, ctx.ask.inverse, rows, grad_T, grad_entropy_T)
            grad_logits = grad_logits.to(hidden_TD.dtype)
            if needs_hidden:
                torch.mm(grad_logits, weight_VD, out=grad_hidden_TD[rows])
            if needs_weight:
                grad_weight_VD = _accumulate(grad_weight_VD, grad_logits, hidden_TD[rows])
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        elif needs_weight:
            grad_weight_VD = torch.zeros_like(weight_VD)
        return grad_hidden_TD, grad_weight_VD, None, None, None, None


def _chunks(num_rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, num_rows)) for start in range(0, num_rows, chunk)]


def _logits(hidden: Tensor, weight_VD: Tensor, inverse: float) -> Tensor:
    logits = torch.mm(hidden, weight_VD.t()).float()
    return logits if inverse == 1 else logits.mul_(inverse)


def _entropy(logits: Tensor, lse: Tensor) -> Tensor:
    """-sum p log p, as lse - sum p x: no row of log-probs is made."""
    return lse - torch.linalg.vecdot((logits - lse[:, None]).exp_(), logits)


def _grad_logits(
    saved: _Saved, inverse: float, rows: slice, grad_T: Tensor, grad_entropy_T: Tensor | None
) -> Tensor:
    """The gradient with respect to the unscaled logits of a chunk, fp32."""
    logits = _logits(saved.hidden_TD[rows], saved.weight_VD, inverse)
    target, grad = saved.targets_T[rows], grad_T[rows, None]
    from_entropy = None
    if grad_entropy_T is not None:
        # dH / dx = -p (log p + H)
        logp = logits - saved.full_lse_T[rows, None]
        from_entropy = logp.exp().mul_(logp.add_(saved.entropy_T[rows, None]))
        from_entropy.mul_(grad_entropy_T[rows, None])
    if saved.starts_T is not None:
        _mask(logits, target, saved.ids_M, saved.starts_T, rows)
    # d log p[target] / dx = onehot - p
    grad_logits = logits.sub_(saved.lse_T[rows, None]).exp_().mul_(-grad)
    grad_logits.scatter_add_(1, target[:, None], grad)
    if from_entropy is not None:
        grad_logits.sub_(from_entropy)
    return grad_logits if inverse == 1 else grad_logits.mul_(inverse)


def _accumulate(total_VD: Tensor | None, grad_logits: Tensor, hidden: Tensor) -> Tensor:
    """`total + grad_logits.T @ hidden`, in place, fp32: a sum over many chunks."""
    if total_VD is None:
        return torch.mm(grad_logits.t(), hidden).float()
    if hidden.dtype == torch.float32:
        return total_VD.addmm_(grad_logits.t(), hidden)
    return total_VD.add_(torch.mm(grad_logits.t(), hidden))


def _mask(logits: Tensor, target: Tensor, ids_M: Tensor, starts_T: Tensor, rows: slice) -> None:
    """Puts -inf at tokens that a row which names any does not name, but for its target."""
    starts = starts_T[rows.start : rows.stop + 1]
    counts = starts.diff()
    keep = (counts == 0)[:, None].expand_as(logits).clone()
    row_M = torch.arange(len(target), device=logits.device).repeat_interleave(counts)
    keep[row_M, ids_M[starts[0] : starts[-1]]] = True
    keep.scatter_(1, target[:, None], True)
    logits.masked_fill_(~keep, float("-inf"))
