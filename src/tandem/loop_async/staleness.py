"""How old the weights were that chose what is trained now."""

from collections.abc import Sequence

import numpy as np

from tandem.types import NO_VERSION, Group, Sample


def oldest_version(samples: Sequence[Sample]) -> int | None:
    """The lowest weight version that chose a token of them; None where nothing was chosen."""
    versions = [_versions(sample).min(initial=np.iinfo(np.int32).max) for sample in samples]
    oldest = int(min(versions, default=np.iinfo(np.int32).max))
    return None if oldest == np.iinfo(np.int32).max else oldest


def staleness_metrics(groups: Sequence[Group], step: int) -> dict[str, float]:
    """`rollout/staleness/...` of samples that rollout `step` trains; {} where nothing was chosen.

    A sample is as stale as its oldest token: the number of rollouts that were learned from between
    the weights that chose it and the step that trains it. `mixed` is the share of samples that more
    than one version wrote.
    """
    found = [_versions(sample) for group in groups for sample in group.samples]
    written = [versions for versions in found if len(versions)]
    if not written:
        return {}
    ages = [step - int(versions.min()) for versions in written]
    return {
        "rollout/staleness/mean": float(np.mean(ages)),
        "rollout/staleness/max": float(max(ages)),
        "rollout/staleness/mixed": float(np.mean([v.min() != v.max() for v in written])),
    }


def _versions(sample: Sample) -> np.ndarray:
    chosen = sample.version_T[sample.sampled_T]
    return chosen[chosen != NO_VERSION]
