"""The clipped policy objective, token by token."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

LOG_RATIO_BOUND = 20.0


class PolicyLoss(NamedTuple):
    """What the policy objective says of each token."""

    loss_T: "torch.Tensor"
    ratio_T: "torch.Tensor"  # p / p_old
    clipped_T: "torch.Tensor"  # bool: the clipped side won


def ratio_to(logprobs_T: "torch.Tensor", old_T: "torch.Tensor") -> "torch.Tensor":
    """p / p_old a token, with the log-ratio held within +-20."""
    # exp() overflows past 88; a stale engine can be further off than that
    return (logprobs_T - old_T).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


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
    import torch

    ratio_T = ratio_to(logprobs_T, old_T)
    plain_T = -ratio_T * advantages_T
    bounded_T = -ratio_T.clamp(1 - low, 1 + high) * advantages_T
    loss_T = torch.maximum(plain_T, bounded_T)
    if dual is not None:
        capped_T = torch.minimum(-dual * advantages_T, loss_T)
        loss_T = torch.where(advantages_T < 0, capped_T, loss_T)
    return PolicyLoss(loss_T, ratio_T, bounded_T.detach() > plain_T.detach())
