"""Advantages: the only place where samples are compared with each other."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tandem.config import AlgoConfig
from tandem.errors import ConfigError, RewardError
from tandem.types import Ending, Group, Sample

STD_EPSILON = 1e-6
WHITENING_EPSILON = 1e-8


def advantage(groups: Sequence[Group], cfg: AlgoConfig) -> tuple[Group, ...]:
    """The groups with the column `advantages` of the chosen estimator.

    Entries are 0 where `sampled_T` is False and in samples without a verdict. Statistics are in
    float64 and over real groups, never over positions in a list. Groups come back as they are when
    the loss has no use for advantages (`sft_loss`, `--disable-compute-advantages-and-returns`).
    Raises ConfigError for an estimator that is not there, RewardError for a reward that is not a
    finite number.
    """
    if cfg.loss_type == "sft_loss" or cfg.disable_compute_advantages_and_returns:
        return tuple(groups)
    estimator = ESTIMATORS.get(cfg.advantage_estimator)
    if estimator is None:
        raise ConfigError(
            f"--advantage-estimator {cfg.advantage_estimator} is not there yet; "
            f"use one of: {', '.join(ESTIMATORS)}"
        )
    estimated = tuple(estimator(group, cfg) for group in groups)
    return whiten(estimated) if cfg.normalize_advantages else estimated


def grpo(group: Group, cfg: AlgoConfig) -> Group:
    """The group with one advantage a sample: its reward, centred and scaled within the group.

    A_i = (r_i - mean(r)) / (std(r) + 1e-6), std unbiased (DeepSeekMath, arXiv:2402.03300). Without
    `std`: Dr.GRPO (arXiv:2503.20783). Samples without a verdict are outside mean and std.
    """
    judged = [is_judged(sample) for sample in group.samples]
    rewards_G = np.array(
        [_reward(sample) for sample in group.samples if is_judged(sample)], dtype=np.float64
    )
    if not cfg.disable_rewards_normalization:
        rewards_G = centred(rewards_G, divides=not cfg.disable_grpo_std_normalization)
    scores_G = np.zeros(len(group.samples))
    scores_G[judged] = rewards_G
    return replace(
        group,
        advantages=tuple(
            np.where(sample.sampled_T, score, 0.0).astype(np.float32)
            for sample, score in zip(group.samples, scores_G, strict=True)
        ),
    )


Estimator = Callable[[Group, AlgoConfig], Group]

ESTIMATORS: dict[str, Estimator] = {"grpo": grpo}
"""Every estimator is one function from a group to the group with its advantages."""


def centred(rewards_G: np.ndarray, *, divides: bool) -> np.ndarray:
    """Rewards minus their mean, over their unbiased std when asked; exactly 0 if all are equal.

    One reward alone has no std and comes back as 0.
    """
    if len(rewards_G) == 0 or np.all(rewards_G == rewards_G[0]):
        # the mean of equal floats can be one rounding off, which 1 / 1e-6 would blow up
        return np.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std(ddof=1) + STD_EPSILON) if divides else centred_G


def whiten(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups with advantages of mean 0 and variance 1 over all trained tokens.

    A <- (A - mean) / sqrt(var + 1e-8), var unbiased from two tokens on (PPO's usual whitening).
    Samples without a verdict are left out and stay 0.
    """
    trained = [
        column_T[sample.sampled_T]
        for group in groups
        for sample, column_T in zip(group.samples, group.advantages or (), strict=True)
        if is_judged(sample)
    ]
    values = np.concatenate(trained).astype(np.float64) if trained else np.zeros(0)
    if len(values) == 0:
        return tuple(groups)
    mean = values.mean()
    scale = 1.0 / np.sqrt(values.var(ddof=1 if len(values) > 1 else 0) + WHITENING_EPSILON)

    def whitened(sample: Sample, column_T: np.ndarray) -> np.ndarray:
        is_trained_T = sample.sampled_T & is_judged(sample)
        return np.where(is_trained_T, (column_T - mean) * scale, 0.0).astype(np.float32)

    return tuple(
        replace(
            group,
            advantages=tuple(map(whitened, group.samples, group.advantages or ())),
        )
        for group in groups
    )


def is_judged(sample: Sample) -> bool:
    """Whether the sample has a verdict that counts: a reward, and no failure while sampling."""
    return sample.reward is not None and sample.ending is not Ending.ERROR


def _reward(sample: Sample) -> float:
    assert sample.reward is not None, "asked the reward of a sample without a verdict"
    if not np.isfinite(sample.reward):
        raise RewardError(
            f"sample {sample.index} has reward {sample.reward}; a reward must be a finite number, "
            "or None where no verdict came"
        )
    return float(sample.reward)
