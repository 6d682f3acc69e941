"""Estimates of the KL divergence between the policy and a reference, token by token."""

from typing import TYPE_CHECKING

from tandem.errors import ConfigError

if TYPE_CHECKING:
    import torch

KL_TYPES = ("k1", "k2", "k3", "low_var_kl")
LOG_RATIO_BOUND = 20.0
LOW_VAR_BOUND = 10.0


def kl_estimate(
    logprobs_T: "torch.Tensor",
    reference_T: "torch.Tensor",
    kind: str,
    ratio_T: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """One estimate of KL(policy, reference) a token, `[T]`, in nats.

    With r = log p - log p_ref (Schulman, "Approximating KL divergence", 2020): k1 = r, k2 = r^2/2,
    k3 = low_var_kl = exp(-r) - 1 + r, never negative. `ratio_T` = p / p_old makes the expectation
    unbiased under samples of the old policy. Only `low_var_kl` is clamped to [-10, 10], after the
    ratio. Raises ConfigError for another kind.
    """
    # exp() overflows past 88, and the gradient of a clamped infinity is NaN
    r_T = (logprobs_T - reference_T).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if kind == "k1":
        estimate_T = r_T
    elif kind == "k2":
        estimate_T = r_T.square() / 2
    elif kind in ("k3", "low_var_kl"):
        # expm1 keeps the digits of a tiny r; never negative, up to rounding
        estimate_T = (-r_T).expm1() + r_T
    else:
        raise ConfigError(f"--kl-loss-type {kind} is unknown; use one of: {', '.join(KL_TYPES)}")
    if ratio_T is not None:
        estimate_T = estimate_T * ratio_T
    if kind == "low_var_kl":
        estimate_T = estimate_T.clamp(-LOW_VAR_BOUND, LOW_VAR_BOUND)
    return estimate_T
