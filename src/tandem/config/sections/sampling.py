"""From prompts to judged answers."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Rollout"""

    rollout_temperature: float = 1.0
    """Sampling temperature, above 0; the trainer divides logits by it too."""
    rollout_top_p: float = 1.0
    """Sample from the most probable tokens that hold this much probability."""
    rollout_top_k: int = -1
    """Sample from this many most probable tokens; -1: from all."""
    rollout_max_context_len: int | None = None
    """Most tokens of prompt and response together."""
    rollout_max_response_len: int | None = None
    """Most new tokens of a sample. Required, unless the context length is set."""
    rollout_min_new_tokens: int = 0
    """A sample does not stop before this many new tokens."""
    rollout_skip_special_tokens: bool = False
    """Leave special tokens out of the decoded text."""
    rollout_stop: tuple[str, ...] = ()
    """Strings that end a sample."""
    rollout_stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a sample, besides the model's own."""
    over_sampling_batch_size: int | None = None
    """Prompts fetched at once while a rollout is filled; `rollout_batch_size` when unset."""
    dynamic_sampling_filter_path: str | None = None
    """Hook `fn(args, group) -> bool or DynamicFilterOutput`: which groups are trained on."""
    dynamic_sampling_keeps: Literal["finished", "prompts"] = "finished"
    """Which accepted groups are kept: the first to finish, or the first in the order of prompts
    (slower, and not biased toward short answers)."""
    no_hold_for_verdicts: bool = False
    """Sample on while a verdict that decides what is sampled next is late: faster beside a slow
    reward, but such rollouts do not repeat to the bit."""
    partial_rollout: bool = False
    """Keep what unfinished samples have and continue them in the next rollout."""
    mask_offpolicy_in_partial_rollout: bool = False
    """Do not train tokens that an earlier policy sampled."""
    rollout_function_path: str | None = None
    """Hook `fn(args, rollout_id, data_source, evaluation=False)` in place of the whole rollout."""
    custom_generate_function_path: str | None = None
    """Hook `async fn(args, sample, sampling_params[, evaluation]) -> Sample or list`."""
    rollout_sample_hook_path: tuple[str, ...] = field(default=(), metadata={"repeat": True})
    """Hook `fn(args, sample, *, rollout_id, evaluation)` before the reward; may be repeated."""
    buffer_filter_path: str | None = None
    """Hook `fn(args, rollout_id, buffer, n) -> groups`: which kept groups continue first."""
    rollout_sample_filter_path: str | None = None
    """Hook `fn(args, groups)` that marks samples which are not trained."""
    rollout_all_samples_process_path: str | None = None
    """Hook `fn(args, all_groups, data_source)`, dropped groups included."""
    rollout_data_postprocess_path: str | None = None
    """Hook `fn(args, rollout_id, rollout_data)` in the trainer, after log-probs."""
    custom_convert_samples_to_train_data_path: str | None = None
    """Hook `fn(args, samples) -> dict` in place of the conversion to training data."""
    custom_rollout_log_function_path: str | None = None
    """Hook `fn(rollout_id, args, samples, extra_metrics, rollout_time) -> bool`; True: logged."""
    custom_eval_rollout_log_function_path: str | None = None
    """Hook `fn(rollout_id, args, data, extra_metrics) -> bool`; True: logged."""
    rollout_data_transport: Literal["object-store", "nixl"] = "object-store"
    """How batches reach the trainer between processes."""
    rollout_external_engine_addrs: tuple[str, ...] = ()
    """Engines that run already, as `host:port`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Engine"""

    rollout_engine: Literal["auto", "torch", "sglang"] = "auto"
    """Embedded engine (`torch`) or SGLang servers; `auto`: servers if a flag is for them alone."""
    engine_max_running: int = 256
    """Sequences that one engine decodes together."""
    engine_block_size: int = 16
    """Tokens per block of the paged KV cache."""
    engine_cache_tokens: int | None = None
    """Tokens that the KV cache holds; from free memory when unset."""
    engine_prefill_tokens: int = 4096
    """Prompt tokens that one engine step computes at most; longer prompts go in chunks."""
    deterministic_mode: bool = False
    """Bit-equal results whatever is batched together, at the cost of some speed."""
    sglang_server_concurrency: int = 512
    """Requests in flight per engine."""
    sglang_mem_fraction_static: float | None = None
    """Share of device memory for weights and KV cache; the engine's own choice when unset."""
    sglang_python: str | None = None
    """Interpreter that runs SGLang's servers and router; this one when unset."""
    sglang_router_ip: str | None = None
    """Host of a router that runs already; `--sglang-router-port` goes with it."""
    sglang_router_port: int | None = None
    """Port of the router that runs already."""
    sglang_router_request_timeout_secs: int = 14400
    """Seconds that one answer of a server may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Reward"""

    rm_type: str | None = None
    """Reward by name, e.g. deepscaler, math, math_verify, dapo, f1, gpqa, remote_rm, random;
    `boxed_` in front judges the last box only; `metadata.rm_type` of a prompt wins."""
    reward_key: str | None = None
    """Key of the number, when the reward is a dictionary."""
    eval_reward_key: str | None = None
    """The same in evaluation; `reward_key` when unset."""
    group_rm: bool = False
    """Judge a whole group in one call."""
    rm_url: str | None = None
    """Address of the service that `remote_rm` asks."""
    custom_rm_path: str | None = None
    """Hook `async fn(args, sample) -> reward`, or of a list of samples with `--group-rm`."""
    custom_reward_post_process_path: str | None = None
    """Hook `fn(args, samples) -> (raw, processed)` in place of group normalisation."""
    reward_workers: int = 2
    """Processes that judge; each can be killed when it hangs."""
    reward_timeout_s: float = 10.0
    """Seconds after which a verdict counts as missing."""


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
