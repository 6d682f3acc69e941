"""Policies as they were when they were published, for samples that an older one wrote."""

from collections.abc import Sequence

import numpy as np

from tandem.train.model import Model
from tandem.types import NO_VERSION, Group

NUM_KEPT = 2
"""The policy that samples now and the one before it: what one update of staleness needs."""


class Snapshots:
    """Owns copies of the last published weights, by version."""

    def __init__(self) -> None:
        self._copies: dict[int, Model] = {}

    def take(self, version: int, policy: Model) -> None:
        """Remembers the policy's weights as those of `version`; the oldest copy makes room."""
        if version in self._copies:  # asked for once more; the weights have not changed
            return
        is_full = len(self._copies) >= NUM_KEPT
        copy = self._copies.pop(min(self._copies)) if is_full else policy.like()
        copy.copy_from(policy)
        self._copies[version] = copy

    def authors(self, groups: Sequence[Group]) -> dict[int, Model]:
        """The copy for every version that wrote a token; the oldest one for those before it."""
        assert self._copies, "old log-probs of an earlier policy before any was published"
        found = {
            int(version)
            for group in groups
            for sample in group.samples
            for version in np.unique(sample.version_T[sample.sampled_T])
            if version != NO_VERSION
        }
        return {version: self._copies[self._nearest(version)] for version in found}

    def _nearest(self, version: int) -> int:
        return max((one for one in self._copies if one <= version), default=min(self._copies))


def by_author(
    groups: Sequence[Group], columns: dict[int, list[tuple[np.ndarray, ...]]]
) -> list[tuple[np.ndarray, ...]]:
    """A column that takes each token's number from the column of the version that wrote it."""
    merged = []
    for place, group in enumerate(groups):
        column = []
        for nth, sample in enumerate(group.samples):
            total_T = np.zeros(sample.num_tokens, np.float32)
            for version, candidates in columns.items():
                is_its_T = sample.sampled_T & (sample.version_T == version)
                total_T[is_its_T] = candidates[place][nth][is_its_T]
            column.append(total_T)
        merged.append(tuple(column))
    return merged
