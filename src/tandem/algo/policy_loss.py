"""The policy objectives, token by token, and sums over the sequences of a packed row."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


LOG_RATIO_BOUND = 20.0


class PolicyLoss(NamedTuple):
    """What a policy objective says of each token."""

    loss_T: "torch.Tensor"
    ratio_T: "torch.Tensor"  # p / p_old, of tokens or of whole sequences
    clipped_T: "torch.Tensor"  # bool: the clipped side won


def ratio_to(logprobs_T: "torch.Tensor", old_T: "torch.Tensor") -> "torch.Tensor":
    """p / p_old a token, with the log-ratio held within +-20."""
    return bounded_exp(logprobs_T - old_T)


def bounded_exp(log_ratio_T: "torch.Tensor") -> "torch.Tensor":
    """exp of a log-ratio held within +-20."""
    # exp() overflows past 88; a stale engine can be further off than that
    return log_ratio_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def policy_loss(
    logprobs_T: "torch.Tensor",
    old_T: "torch.Tensor",
    advantages_T: "torch.Tensor",
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> PolicyLoss:
    """The clipped surrogate loss of each token, to be minimised.

    max(-ratio A, -clip(ratio, 1 - low, 1 + high) A) (PPO, arXiv:1707.06347; another `high` is
    DAPO's clip-higher, arXiv:2503.14476). With `dual` = c > 1 and A < 0 no more than -c A (dual
    clip, arXiv:1912.09729).
    """
    return _surrogate(ratio_to(logprobs_T, old_T), advantages_T, low, high, dual)


def sequence_policy_loss(
    logprobs_T: "torch.Tensor",
    old_T: "torch.Tensor",
    advantages_T: "torch.Tensor",
    mask_T: "torch.Tensor",
    bounds_S: "torch.Tensor",
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> PolicyLoss:
    """The same with the ratio of the whole sequence at each of its tokens.

    ratio = exp(mean over the sequence's trained tokens of log p - log p_old) (GSPO,
    arXiv:2507.18071). Every training sample is a sequence, also where an attempt has several.
    """
    mean_S = masked_means(logprobs_T - old_T, mask_T, bounds_S)
    mean_T = to_tokens(mean_S, bounds_S, len(logprobs_T)).to(logprobs_T.dtype)
    return _surrogate(bounded_exp(mean_T), advantages_T, low, high, dual)


def weighted_likelihood_loss(
    logprobs_T: "torch.Tensor",
    old_T: "torch.Tensor",
    advantages_T: "torch.Tensor",
    *,
    low: float,
    high: float,
) -> PolicyLoss:
    """-stopgrad(clip(ratio, 1 - low, 1 + high)) A log p (CISPO, arXiv:2506.13585).

    Clipped tokens keep their gradient, with a bounded weight.
    """
    ratio_T = ratio_to(logprobs_T.detach(), old_T)
    bounded_T = ratio_T.clamp(1 - low, 1 + high)
    return PolicyLoss(-bounded_T * advantages_T * logprobs_T, ratio_T, bounded_T != ratio_T)


def trusted_sequences(
    logprobs_T: "torch.Tensor",
    old_T: "torch.Tensor",
    advantages_T: "torch.Tensor",
    mask_T: "torch.Tensor",
    bounds_S: "torch.Tensor",
    delta: float,
) -> "torch.Tensor":
    """False at tokens with A < 0 of sequences that drifted by more than `delta`, bool `[T]`.

    Drift is the mean over trained tokens of log p_old - log p (off-policy sequence
    masking, DeepSeek-V3.2 report, 2025).
    """
    drift_S = masked_means(old_T - logprobs_T.detach(), mask_T, bounds_S)
    is_far_T = to_tokens(drift_S, bounds_S, len(logprobs_T)) > delta
    return ~(is_far_T & (advantages_T < 0))


def _surrogate(
    ratio_T: "torch.Tensor",
    advantages_T: "torch.Tensor",
    low: float,
    high: float,
    dual: float | None,
) -> PolicyLoss:
    import torch

    plain_T = -ratio_T * advantages_T
    bounded_T = -ratio_T.clamp(1 - low, 1 + high) * advantages_T
    loss_T = torch.maximum(plain_T, bounded_T)
    if dual is not None:
        capped_T = torch.minimum(-dual * advantages_T, loss_T)
        loss_T = torch.where(advantages_T < 0, capped_T, loss_T)
    return PolicyLoss(loss_T, ratio_T, bounded_T.detach() > plain_T.detach())


def sequence_sums(x_T: "torch.Tensor", bounds_S: "torch.Tensor") -> "torch.Tensor":
    """The sum of each sequence, float64 `[S]`: in its own order, so packing changes no bit."""
    import torch

    return torch.segment_reduce(x_T.double(), "sum", offsets=bounds_S.long())


def masked_means(
    x_T: "torch.Tensor", mask_T: "torch.Tensor", bounds_S: "torch.Tensor"
) -> "torch.Tensor":
    """The mean over each sequence's masked-in tokens, float64 `[S]`; 0 where there are none."""
    # where, not a product: what is masked out may be infinite
    kept_T = x_T.where(mask_T > 0, 0.0)
    counts_S = sequence_sums(mask_T, bounds_S).clamp(min=1)
    return sequence_sums(kept_T, bounds_S) / counts_S


def to_tokens(x_S: "torch.Tensor", bounds_S: "torch.Tensor", num_tokens: int) -> "torch.Tensor":
    """Each sequence's value at all of its tokens, `[T]`."""
    return x_S.repeat_interleave(bounds_S.long().diff(), output_size=num_tokens)
