"""Rollouts that nobody samples: those that another run wrote."""

import time
from collections.abc import Mapping
from typing import Any

from tandem.rollout.dump import path_of, read
from tandem.types import Rollout


class ReplayedStage:
    """Gives rollouts from files, so that trainers learn from them; a `contracts.Sampler`."""

    def __init__(self, template: str) -> None:
        """`template` is the path of the files, with `{rollout_id}` to be filled in."""
        self._template = template

    def collect(self, step: int) -> Rollout:
        """The groups of this rollout's file, in its order; raises DataError."""
        started_s = time.perf_counter()
        groups = read(path_of(self._template, step))
        seconds = time.perf_counter() - started_s
        return Rollout(step=step, groups=groups, metrics={"perf/rollout_time": seconds})

    def state(self) -> Mapping[str, Any]:
        """Nothing: the number of the rollout says which file is next."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: a run that sampled can be gone on from too."""
