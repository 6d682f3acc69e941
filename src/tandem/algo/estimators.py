"""Advantage estimators: each a function from a group and its rewards to columns of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tandem.algo.kl import reward_kl
from tandem.algo.shaping import against_the_others, centred, judged, shaped_rewards
from tandem.config import AlgoConfig
from tandem.types import Group, Sample

Estimator = Callable[[Group, np.ndarray, AlgoConfig], Group]
"""Takes the group, its normalised rewards `[G]` and the settings; gives it with advantages."""


def group_relative(group: Group, scores_G: np.ndarray, cfg: AlgoConfig) -> Group:
    """The group with one advantage a sample, the same for all of its tokens: its score.

    GRPO (arXiv:2402.03300), GSPO (arXiv:2507.18071), CISPO (arXiv:2506.13585), RLOO
    (arXiv:2402.14740); they differ in the score and in the loss.
    """
    columns = [
        spread(chosen_T, np.full(chosen_T.sum(), score))
        for _, chosen_T, score in _walk(group, scores_G)
    ]
    return replace(group, advantages=tuple(columns))


def reinforce_plus_plus(group: Group, scores_G: np.ndarray, cfg: AlgoConfig) -> Group:
    """The group with returns as advantages: A_t = sum over s >= t of gamma^(s-t) R_s.

    R_t = -kl_coef * KL_t, plus the reward at the sample's last chosen token (REINFORCE++,
    arXiv:2501.03262). Whitening over the rollout is the baseline. Steps are chosen tokens: what
    the world replied in between costs no discount.
    """
    columns = []
    for place, chosen_T, score in _walk(group, scores_G):
        rewards = -cfg.kl_coef * reward_kl(group, place, cfg)[chosen_T]
        rewards[-1:] += score
        columns.append(spread(chosen_T, discounted(rewards, cfg.gamma)))
    return replace(group, advantages=tuple(columns))


def reinforce_plus_plus_baseline(group: Group, scores_G: np.ndarray, cfg: AlgoConfig) -> Group:
    """The group with A_t = score - kl_coef * KL_t (REINFORCE++-baseline, arXiv:2501.03262)."""
    columns = []
    for place, chosen_T, score in _walk(group, scores_G):
        penalty = cfg.kl_coef * reward_kl(group, place, cfg)[chosen_T]
        columns.append(spread(chosen_T, score - penalty))
    return replace(group, advantages=tuple(columns))


def ppo(group: Group, scores_G: np.ndarray, cfg: AlgoConfig) -> Group:
    """The group with generalised advantage estimates and the returns that the critic learns.

    delta_t = R_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambd A_{t+1}, return = A + V, with
    V = 0 past the end and R as in REINFORCE++ (GAE, arXiv:1506.02438). Steps are chosen tokens.
    """
    assert group.values is not None, "generalised advantages of a group without values"
    advantages, returns = [], []
    for place, chosen_T, score in _walk(group, scores_G):
        rewards = -cfg.kl_coef * reward_kl(group, place, cfg)[chosen_T]
        rewards[-1:] += score
        values = group.values[place][chosen_T].astype(np.float64)
        estimate = gae(rewards, values, cfg.gamma, cfg.lambd)
        advantages.append(spread(chosen_T, estimate))
        returns.append(spread(chosen_T, estimate + values))
    return replace(group, advantages=tuple(advantages), returns=tuple(returns))


ESTIMATORS: dict[str, Estimator] = {
    "grpo": group_relative,
    "gspo": group_relative,
    "cispo": group_relative,
    "rloo": group_relative,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "ppo": ppo,
}

DIVIDED = ("grpo", "gspo", "cispo")
"""Estimators whose rewards are centred within the group and divided by its std."""

CENTRED = (*DIVIDED, "reinforce_plus_plus_baseline")


def normalised(group: Group, cfg: AlgoConfig) -> np.ndarray:
    """The rewards as the estimator wants them, float64 `[G]`; 0 where there is no verdict.

    Statistics are over the samples with a verdict (dialect 3.2). Without std: Dr. GRPO
    (arXiv:2503.20783). RLOO takes the sample's whole KL off its reward first.
    """
    has_verdict_G, rewards_G = judged(group), shaped_rewards(group, cfg)
    name, found_G = cfg.advantage_estimator, rewards_G[has_verdict_G]
    if name == "rloo":
        kl_G = [
            reward_kl(group, place, cfg)[sample.sampled_T].sum()
            for place, sample in enumerate(group.samples)
        ]
        found_G = found_G - cfg.kl_coef * np.array(kl_G)[has_verdict_G]
    if not cfg.disable_rewards_normalization:
        if name == "rloo":
            found_G = against_the_others(found_G)
        elif name in CENTRED:
            divides = name in DIVIDED and not cfg.disable_grpo_std_normalization
            found_G = centred(found_G, divides=divides)
    scores_G = np.zeros(len(rewards_G))
    scores_G[has_verdict_G] = found_G
    return scores_G


def discounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Each reward plus gamma times what follows it."""
    return gae(rewards, np.zeros_like(rewards), gamma, 1.0)


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lambd: float) -> np.ndarray:
    """Generalised advantage estimates of one trajectory, float64."""
    following = np.append(values[1:], 0.0)
    deltas = (rewards + gamma * following - values).tolist()
    running, found = 0.0, []
    for delta in reversed(deltas):
        running = delta + gamma * lambd * running
        found.append(running)
    return np.array(found[::-1], np.float64)


def spread(chosen_T: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A float32 column with `values` at the chosen tokens and 0 elsewhere."""
    column_T = np.zeros(len(chosen_T), np.float32)
    column_T[chosen_T] = values
    return column_T


def chosen(sample: Sample, *, has_verdict: bool) -> np.ndarray:
    """The tokens that carry an advantage: what the policy chose, in samples with a verdict."""
    return sample.sampled_T & has_verdict


def _walk(group: Group, scores_G: np.ndarray) -> Iterator[tuple[int, np.ndarray, float]]:
    """(place, chosen tokens, score) of each sample."""
    for place, has_verdict in enumerate(judged(group)):
        yield place, chosen(group.samples[place], has_verdict=has_verdict), scores_G[place]
