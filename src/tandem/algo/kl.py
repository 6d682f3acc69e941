"""KL between policies, token by token: how it is estimated, and what rewards subtract of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tandem.algo.shaping import is_judged
from tandem.config import AlgoConfig
from tandem.errors import ConfigError, RewardError
from tandem.types import Group

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


TEACHER_KEY = "teacher_log_probs"
"""Where a reward function leaves the teacher's log-probs in a sample's metadata."""


def policy_logprobs(group: Group, place: int, cfg: AlgoConfig) -> np.ndarray:
    """Log-probs of a sample under the policy that counts as its author, `[T]`.

    The engine's with `--use-rollout-logprobs`, else the trainer's.
    """
    if cfg.use_rollout_logprobs:
        return group.samples[place].logprobs_T
    assert group.old_logprobs is not None, "KL in the reward needs the policy's log-probs"
    return group.old_logprobs[place]


def reward_kl(group: Group, place: int, cfg: AlgoConfig) -> np.ndarray:
    """KL of policy to reference for each token of a sample, float64 `[T]`; 0 without `kl_coef`.

    The estimate is `kl_loss_type`'s, without the ratio: the samples are the policy's own.
    """
    import torch

    if cfg.kl_coef == 0:
        return np.zeros(group.samples[place].num_tokens)
    assert group.reference_logprobs is not None, "KL in the reward needs a reference"
    policy_T = torch.from_numpy(policy_logprobs(group, place, cfg).astype(np.float64))
    reference_T = torch.from_numpy(group.reference_logprobs[place].astype(np.float64))
    kl_T = kl_estimate(policy_T, reference_T, cfg.kl_loss_type).numpy()
    return np.where(group.samples[place].sampled_T, kl_T, 0.0)


def response_kl(groups: Sequence[Group], cfg: AlgoConfig) -> "list[torch.Tensor]":
    """The KL of each sample's response, as a custom advantage function sees it."""
    import torch

    return [
        torch.from_numpy(reward_kl(group, place, cfg)[len(group.prompt.tokens_T) :]).float()
        for group in groups
        for place in range(len(group.samples))
    ]


def distilled(group: Group, cfg: AlgoConfig) -> Group:
    """The group with A_t - opd_kl_coef * (log p_student - log p_teacher) as its advantages.

    On-policy distillation (arXiv:2306.13649; Thinking Machines, "On-policy distillation", 2025): a
    policy gradient on the reverse KL, beside whatever the reward says. The teacher's log-probs are
    a column, or lie in a sample's `metadata["teacher_log_probs"]`, one for each response token.
    """
    if group.teacher_logprobs is None:
        group = replace(group, teacher_logprobs=_told(group))
    assert group.advantages is not None and group.teacher_logprobs is not None
    columns = []
    for place, sample in enumerate(group.samples):
        gap_T = policy_logprobs(group, place, cfg) - group.teacher_logprobs[place]
        is_chosen_T = sample.sampled_T & is_judged(sample)
        column_T = group.advantages[place] - cfg.opd_kl_coef * gap_T
        columns.append(np.where(is_chosen_T, column_T, 0.0).astype(np.float32))
    return replace(group, advantages=tuple(columns))


def _told(group: Group) -> tuple[np.ndarray, ...]:
    """The teacher's log-probs that came with the verdicts; raises RewardError where they did not.

    A sample without a verdict has zeros: it is not trained.
    """
    start, columns = len(group.prompt.tokens_T), []
    for sample in group.samples:
        column_T = np.zeros(sample.num_tokens, np.float32)
        told = sample.metadata.get(TEACHER_KEY)
        if is_judged(sample):
            if told is None or len(told) != sample.num_tokens - start:
                raise RewardError(
                    f"sample {sample.index} came without the teacher's log-probs of its "
                    f"{sample.num_tokens - start} response tokens; --opd-type sglang wants a "
                    f'reward function that puts them into sample.metadata["{TEACHER_KEY}"]: '
                    "--custom-rm-path tandem.algo.teacher.ask_teacher does"
                )
            column_T[start:] = told
        columns.append(np.where(sample.sampled_T, column_T, 0.0).astype(np.float32))
    return tuple(columns)
