"""Prompts: where they come from, how they are read, and how many a rollout takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Data"""

    prompt_data: str | None = None
    """`.jsonl` or `.parquet` file of prompts, optionally a slice of it: `path@[a:b]`."""
    input_key: str = "input"
    """Column of the prompt: a string or a list of messages."""
    label_key: str | None = None
    """Column of the label that the reward compares with."""
    metadata_key: str = "metadata"
    """Column of metadata that travels with the sample."""
    tool_key: str = "tools"
    """Column of tools, given to the chat template (may be a JSON string)."""
    multimodal_keys: Mapping[str, str] = field(default_factory=dict)
    """Columns of images and the like as JSON, e.g. `{"image": "column"}`."""
    apply_chat_template: bool = False
    """Render prompts with the tokenizer's chat template; a string becomes one user message."""
    apply_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the chat template as JSON, e.g. `{"enable_thinking": false}`."""
    skip_bad_lines: bool = False
    """Count lines that cannot be read instead of stopping at the first."""
    loss_mask_type: Literal["qwen", "qwen3", "qwen3_5", "distill_qwen"] = "qwen"
    """How supervised conversations mark the tokens to learn."""
    rollout_shuffle: bool = False
    """Shuffle the prompts in every epoch, by `--rollout-seed` and the epoch's number."""
    rollout_seed: int = 42
    """Seed of the prompt order and of sampling."""
    rollout_max_prompt_len: int | None = None
    """Longer prompts (in tokens) are dropped and counted; context length - 1 when that is set."""
    num_rollout: int | None = None
    """Rollouts of the whole run, resumed ones included; wins over `--num-epoch`."""
    num_epoch: int | None = None
    """Passes over the prompts, from which `--num-rollout` follows once they are counted."""
    start_rollout_id: int | None = None
    """First rollout, instead of the checkpoint's next one."""
    rollout_batch_size: int | None = None
    """Prompts per rollout. Required."""
    n_samples_per_prompt: int = 1
    """Samples per prompt: the size of a group."""
    data_source_path: str | None = None
    """Class to take prompts from instead of `--prompt-data`."""
    disable_rollout_global_dataset: bool = False
    """Read no data set: the rollout function brings its own prompts."""
