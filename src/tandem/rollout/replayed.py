"""Rollouts that nobody samples: those that another run wrote."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tandem.rollout.dump import path_of, read
from tandem.types import Group, Rollout


class ReplayedStage:
    """Gives rollouts from files, so that trainers learn from them; a `contracts.Sampler`."""

    def __init__(self, template: str, share: float | None = None) -> None:
        """`template` is the path of the files, with `{rollout_id}` to be filled in; `share` is how
        much of each is taken (None: all)."""
        self._template, self._share = template, share

    def collect(self, step: int) -> Rollout:
        """The groups of this rollout's file, in its order; raises DataError."""
        started_s = time.perf_counter()
        groups = read(path_of(self._template, step))
        if self._share is not None:
            groups = from_both_ends(groups, self._share)
        seconds = time.perf_counter() - started_s
        return Rollout(step=step, groups=groups, metrics={"perf/rollout_time": seconds})

    def state(self) -> Mapping[str, Any]:
        """Nothing: the number of the rollout says which file is next."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: a run that sampled can be gone on from too."""


def from_both_ends(groups: Sequence[Group], share: float) -> tuple[Group, ...]:
    """That share of the groups, at least one: half of them the first, half the last."""
    count = max(1, int(len(groups) * share))
    num_last = count // 2
    return (*groups[: count - num_last], *groups[len(groups) - num_last :])
