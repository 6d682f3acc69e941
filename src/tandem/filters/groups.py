"""Filters that come with the package, under the names that the dialect's launches use."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tandem.contracts import Filter
from tandem.types import Group

LEAST_STD = 1e-6
NO_VERDICT = "no_verdict"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFilter:
    """A filter and whether a group it rejects is kept when too few others would be left."""

    check: Filter
    keep_when_insufficient: bool = False

    def __call__(self, group: Group) -> str | None:
        """None to keep the group, else the reason why it is dropped."""
        return self.check(group)


def check_reward_nonzero_std(group: Group) -> str | None:
    """None if the group's rewards differ, else `zero_std_{first reward}` or `no_verdict`.

    They differ when their unbiased standard deviation is over 1e-6. Missing verdicts are left out.
    Every sample counts, also those that one attempt fanned out into: what matters is whether any
    of them would be pushed up or down. A single reward differs from nothing.
    """
    rewards = np.array([reward for reward in group.rewards_G if reward is not None], np.float64)
    if len(rewards) == 0:
        return NO_VERDICT
    if len(rewards) > 1 and rewards.std(ddof=1) > LEAST_STD:
        return None
    return f"zero_std_{round(float(rewards[0]), 1) + 0.0}"  # + 0.0: minus zero reads as zero


_HUB = "slime.rollout.filter_hub.dynamic_sampling_filters."

SHIPPED: Mapping[str, GroupFilter] = {
    _HUB + "check_reward_nonzero_std": GroupFilter(check=check_reward_nonzero_std),
    _HUB + "check_reward_nonzero_std_with_fallback": GroupFilter(
        check=check_reward_nonzero_std, keep_when_insufficient=True
    ),
}
"""The dialect's filters by the path that its users write."""


def find_shipped(path: str) -> GroupFilter | None:
    """The shipped filter that `--dynamic-sampling-filter-path` names, by its old path or its name.

    None when the path is a user's own.
    """
    by_name = {old.rpartition(".")[2]: shipped for old, shipped in SHIPPED.items()}
    return SHIPPED.get(path) or by_name.get(path.removeprefix("tandem.filters."))
