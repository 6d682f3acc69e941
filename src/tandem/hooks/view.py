"""What users' hooks see of a sample, and what they return, under the dialect's names."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from tandem.types import NO_VERSION, Ending, Prompt, Sample


class DialectStatus(StrEnum):
    """The dialect's words for how far a sample is."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


STATUS_OF = {
    Ending.STOP: DialectStatus.COMPLETED,
    Ending.LENGTH: DialectStatus.TRUNCATED,
    Ending.ABORT: DialectStatus.ABORTED,
    Ending.ERROR: DialectStatus.FAILED,
}

STATUS_BY_REASON = {
    "stop": DialectStatus.COMPLETED,
    "length": DialectStatus.TRUNCATED,
    "abort": DialectStatus.ABORTED,
}
"""By the type of a finish reason; others say nothing."""


@dataclass(kw_only=True, eq=False)
class DialectSample:
    """A copy of a sample that a hook may read and change; it may set attributes of its own.

    Lists about the response (`loss_mask`, `rollout_log_probs`) have `response_length` entries:
    what follows the prompt, replies of the world included.
    """

    Status = DialectStatus

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: Any = None
    reward: Any = None
    loss_mask: list[int] | None = None
    weight_versions: list[str] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    remove_sample: bool = False
    status: DialectStatus = DialectStatus.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    train_metadata: dict[str, Any] | None = None
    teacher_log_probs: list[float] | None = None
    multimodal_inputs: dict[str, Any] | None = None
    generate_function_path: str | None = None
    custom_rm_path: str | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0

    @property
    def effective_response_length(self) -> int:
        """Tokens of the response that are trained."""
        return self.response_length if self.loss_mask is None else sum(self.loss_mask)

    def get_reward_value(self, args: Any) -> Any:
        """The reward, or its entry under `args.reward_key` when that is set."""
        return self.reward[args.reward_key] if args.reward_key else self.reward

    def append_response_tokens(
        self,
        args: Any,
        tokens: Sequence[int],
        log_probs: Sequence[float] | None = None,
        trainable: bool = True,
        meta_info: Mapping[str, Any] | None = None,
        text: str | None = None,
        update_terminal_info: bool = True,
    ) -> None:
        """Adds tokens to the response: what the policy wrote (with log-probs), or a reply of the
        world, which is not trained. `meta_info` is that of `/generate`. Raises ValueError.
        """
        if trainable and (log_probs is None or len(log_probs) != len(tokens)):
            raise ValueError(f"{len(tokens)} trainable tokens need a log-prob each")
        if not trainable and log_probs is not None:
            raise ValueError("tokens that are not trained have no log-probs")
        if self.loss_mask is None:
            self.loss_mask = [1] * self.response_length
        if self.rollout_log_probs is None:
            self.rollout_log_probs = [0.0] * self.response_length
        self.tokens.extend(int(token) for token in tokens)
        self.response_length += len(tokens)
        self.response += text or ""
        self.loss_mask.extend([int(trainable)] * len(tokens))
        self.rollout_log_probs.extend(map(float, log_probs or [0.0] * len(tokens)))
        told = meta_info or {}
        if "weight_version" in told:
            self.weight_versions.append(str(told["weight_version"]))
        ended = (told.get("finish_reason") or {}).get("type")
        if update_terminal_info and ended in STATUS_BY_REASON:
            self.status = STATUS_BY_REASON[ended]


def view_of(prompt: Prompt, sample: Sample) -> DialectSample:
    """A sample and its prompt as a hook sees them; nothing in it is shared with them."""
    start = len(prompt.tokens_T)
    metadata = merged_metadata(prompt, sample)
    content = prompt.text or copy.deepcopy(prompt.content)
    return DialectSample(
        group_index=prompt.index,
        index=sample.index,
        rollout_id=sample.rollout,
        prompt=content if isinstance(content, str) else [dict(message) for message in content],
        tokens=sample.tokens_T.tolist(),
        response=sample.text,
        response_length=sample.num_tokens - start,
        label=copy.deepcopy(prompt.label),
        reward=sample.reward if sample.verdict is None else copy.deepcopy(sample.verdict),
        loss_mask=sample.sampled_T[start:].astype(np.int64).tolist(),
        weight_versions=_versions(sample),
        rollout_log_probs=sample.logprobs_T[start:].tolist(),
        status=STATUS_OF[sample.ending],
        metadata=copy.deepcopy(metadata),
        generate_function_path=metadata.get("generate_function_path"),
        custom_rm_path=metadata.get("custom_rm_path"),
    )


def merged_metadata(prompt: Prompt, sample: Sample) -> dict[str, Any]:
    """The prompt's metadata with the sample's own laid over it."""
    return {**prompt.metadata, **sample.metadata}


def _versions(sample: Sample) -> list[str]:
    """The weight versions that wrote the sample, in order of their first token."""
    written = sample.version_T[sample.version_T != NO_VERSION].tolist()
    return [str(version) for version in dict.fromkeys(written)]


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
