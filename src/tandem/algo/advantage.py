"""Advantages: the only place where samples are compared with each other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tandem.algo.estimators import ESTIMATORS, chosen, normalised, spread
from tandem.algo.hooks import NO_HOOKS, Hooks, hooked_advantages, postprocessed
from tandem.algo.kl import distilled, response_kl
from tandem.algo.shaping import is_judged, judged
from tandem.config import AlgoConfig
from tandem.errors import ConfigError
from tandem.types import Group, Sample

WHITENING_EPSILON = 1e-8


def advantage(
    groups: Sequence[Group], cfg: AlgoConfig, hooks: Hooks = NO_HOOKS
) -> tuple[Group, ...]:
    """The groups with the column `advantages` of the chosen estimator; PPO adds `returns`.

    Entries are 0 where `sampled_T` is False and in samples without a verdict. Statistics are in
    float64 and over real groups, never over positions in a list. All groups of the rollout come at
    once, before they are split over ranks, so whitening is over all ranks. Groups come back as they
    are when the loss has no use for advantages (`sft_loss`,
    `--disable-compute-advantages-and-returns`). The hook of `--rollout-data-postprocess-path` has
    the last word in either case. Raises ConfigError for an estimator that is not
    there, RewardError for a reward that is not a finite number.
    """
    if cfg.loss_type == "sft_loss" or cfg.disable_compute_advantages_and_returns:
        return postprocessed(groups, _raw_scores(groups), cfg, hooks)
    estimator = ESTIMATORS.get(cfg.advantage_estimator)
    if estimator is None:
        raise ConfigError(
            f"--advantage-estimator {cfg.advantage_estimator} is not there; "
            f"use one of: {', '.join(ESTIMATORS)}"
        )
    scores = _scores(groups, cfg, hooks)
    if hooks.advantage is not None:
        kl = response_kl(groups, cfg)
        estimated = hooked_advantages(groups, scores, kl, hooks, wants_returns=cfg.has_critic)
    else:
        estimated = [
            estimator(group, scores_G, cfg) for group, scores_G in zip(groups, scores, strict=True)
        ]
    estimated = [
        replace(group, scores=tuple(map(float, scores_G)))
        for group, scores_G in zip(estimated, scores, strict=True)
    ]
    if cfg.use_opd:
        estimated = [distilled(group, cfg) for group in estimated]
    done = whiten(estimated) if cfg.normalize_advantages else tuple(estimated)
    return postprocessed(done, scores, cfg, hooks)


def _raw_scores(groups: Sequence[Group]) -> list[np.ndarray]:
    return [np.array([s.reward or 0.0 for s in group.samples], np.float64) for group in groups]


def _scores(groups: Sequence[Group], cfg: AlgoConfig, hooks: Hooks) -> Sequence[np.ndarray]:
    """The numbers `[G]` that the estimator starts from, of each group."""
    if hooks.post_process is None:
        return [normalised(group, cfg) for group in groups]
    processed = hooks.post_process(groups)
    # what a hook says of a sample without a verdict counts for nothing
    return [
        np.where(judged(group), scores_G, 0.0)
        for group, scores_G in zip(groups, processed, strict=True)
    ]


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
        is_trained_T = chosen(sample, has_verdict=is_judged(sample))
        return spread(is_trained_T, (column_T[is_trained_T] - mean) * scale)

    return tuple(
        replace(
            group,
            advantages=tuple(map(whitened, group.samples, group.advantages or ())),
        )
        for group in groups
    )
