"""What hooks return, under the dialect's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class DynamicFilterOutput:
    """What a dynamic sampling filter says of a group."""

    keep: bool
    reason: str | None = None  # counted in `rollout/dynamic_filter/drop_{reason}`
    keep_when_insufficient: bool = False  # keep it all the same if others had to be sampled for it


@dataclass
class RolloutFnTrainOutput:
    """What a rollout function returns: groups of samples, or of lists of samples of one attempt."""

    samples: list[list[Any]]
    metrics: Mapping[str, Any] | None = None


@dataclass
class RolloutFnEvalOutput:
    """What an evaluation function returns: by set, `rewards`, `truncated` and `samples`."""

    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
