"""Sampling of training answers, and the hooks around it."""

from dataclasses import dataclass, field
from typing import Literal


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
