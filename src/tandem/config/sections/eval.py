"""Held-out questions: when they are asked and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """One set of held-out prompts with every setting filled in.

    A value is the set's own entry in `--eval-config`, else that file's `defaults`, else the
    `--eval-*` flag, else the training flag. `rm_type` and `custom_rm_path` are the set's own: None
    leaves the choice to each prompt's metadata and then to `--rm-type` or `--custom-rm-path`.
    """

    name: str
    path: str
    rm_type: str | None = None
    custom_rm_path: str | None = None
    input_key: str = "input"
    label_key: str | None = None
    tool_key: str = "tools"
    metadata_key: str = "metadata"
    multimodal_keys: Mapping[str, str] = field(default_factory=dict)
    apply_chat_template: bool = False
    apply_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    n_samples_per_eval_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_response_len: int | None = None
    max_prompt_len: int | None = None
    max_context_len: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = False
    custom_generate_function_path: str | None = None
    metadata_overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation"""

    eval_interval: int | None = None
    """Rollouts between evaluations; never when unset."""
    eval_prompt_data: tuple[str, ...] = ()
    """`name path [name path ...]`; a single path gets the name aime."""
    eval_config: str | None = None
    """YAML file of sets and their settings; overrides `--eval-prompt-data`."""
    skip_eval_before_train: bool = False
    """Do not evaluate before the first rollout."""
    eval_input_key: str | None = None
    """Column of the prompt; `input_key` when unset."""
    eval_label_key: str | None = None
    """Column of the label; `label_key` when unset."""
    eval_tool_key: str | None = None
    """Column of tools; `tool_key` when unset."""
    n_samples_per_eval_prompt: int = 1
    """Samples per held-out prompt."""
    eval_temperature: float | None = None
    """Sampling temperature, 0 for the most probable token; `rollout_temperature` when unset."""
    eval_top_p: float | None = None
    """`rollout_top_p` when unset."""
    eval_top_k: int | None = None
    """`rollout_top_k` when unset."""
    eval_max_response_len: int | None = None
    """Most new tokens; `rollout_max_response_len` when unset."""
    eval_max_prompt_len: int | None = None
    """Longer held-out prompts are dropped and counted."""
    eval_min_new_tokens: int | None = None
    """A sample does not stop before; `rollout_min_new_tokens` when unset."""
    eval_max_context_len: int | None = None
    """Most tokens of prompt and response; `rollout_max_context_len` when unset."""
    eval_function_path: str | None = None
    """Hook in place of the whole evaluation; `rollout_function_path` when unset."""
    eval_sets: tuple[EvalSet, ...] = field(default=(), metadata={"derived": True})
    """The sets, with every setting filled in."""
