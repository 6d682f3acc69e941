"""From verdicts to the one number a sample that an estimator starts from."""

import numpy as np

from tandem.config import AlgoConfig
from tandem.errors import RewardError
from tandem.types import Ending, Group, Sample

STD_EPSILON = 1e-6


def is_judged(sample: Sample) -> bool:
    """Whether the sample has a verdict that counts: a reward, and no failure while sampling."""
    return sample.reward is not None and sample.ending is not Ending.ERROR


def judged(group: Group) -> np.ndarray:
    """Which samples have a verdict, bool `[G]`."""
    return np.array([is_judged(sample) for sample in group.samples], bool)


def shaped_rewards(group: Group, cfg: AlgoConfig) -> np.ndarray:
    """Rewards with the over-long penalty, float64 `[G]`; 0 where there is no verdict.

    Raises RewardError for a reward that is not a finite number.
    """
    return np.array(
        [
            _reward(sample) + overlong_penalty(length, cfg) if is_judged(sample) else 0.0
            for sample, length in zip(group.samples, group.responses_G, strict=True)
        ],
        np.float64,
    )


def overlong_penalty(length: int, cfg: AlgoConfig) -> float:
    """What an answer of `length` tokens loses for nearing the limit, 0 or below.

    DAPO's soft over-long punishment (arXiv:2503.14476, eq. 13): nothing up to limit - buffer, then
    linear, -1 from the limit on; times `overlong_penalty_factor`.
    """
    buffer, limit = cfg.overlong_buffer_len, cfg.overlong_max_len
    if not buffer:
        return 0.0
    assert limit is not None, "resolve names the length at which the penalty is full"
    share = min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)
    return -share * cfg.overlong_penalty_factor


def centred(rewards_G: np.ndarray, *, divides: bool) -> np.ndarray:
    """Rewards minus their mean, over their unbiased std when asked; exactly 0 if all are equal.

    One reward alone has no std and comes back as 0.
    """
    if len(rewards_G) == 0 or np.all(rewards_G == rewards_G[0]):
        # the mean of equal floats can be one rounding off, which 1 / 1e-6 would blow up
        return np.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std(ddof=1) + STD_EPSILON) if divides else centred_G


def against_the_others(rewards_G: np.ndarray) -> np.ndarray:
    """Each reward minus the mean of the others: n / (n - 1) times the centred one; one alone is 0.

    RLOO (arXiv:2402.14740, section 2).
    """
    count = len(rewards_G)
    return centred(rewards_G, divides=False) * (count / max(count - 1, 1))


def _reward(sample: Sample) -> float:
    assert sample.reward is not None, "asked the reward of a sample without a verdict"
    if not np.isfinite(sample.reward):
        raise RewardError(
            f"sample {sample.index} has reward {sample.reward}; a reward must be a finite number, "
            "or None where no verdict came"
        )
    return float(sample.reward)
