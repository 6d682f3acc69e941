"""What a user's hook sees of a sample: the dialect's attribute names."""

import copy
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
