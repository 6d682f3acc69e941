"""Numbers that a setting can be."""

from collections.abc import Callable, Iterator
from math import isfinite

from tandem.config.config import Config
from tandem.config.fields import flag_of


def out_of_range(cfg: Config) -> Iterator[str]:
    """One sentence for every number that its field cannot be."""
    for section, names, holds, wanted in RANGES:
        for name in names.split():
            value = getattr(getattr(cfg, section), name)
            if value is not None and not (isfinite(value) and holds(value)):
                yield f"{flag_of(name)} {value}: wanted {wanted}"


def is_positive(value: float) -> bool:
    return value >= 1


def is_not_negative(value: float) -> bool:
    return value >= 0


def is_above_zero(value: float) -> bool:
    return value > 0


def is_share(value: float) -> bool:
    return 0 < value <= 1


def is_momentum(value: float) -> bool:
    return 0 <= value < 1


def is_closed_share(value: float) -> bool:
    return 0 <= value <= 1


def is_top_k(value: float) -> bool:
    return value == -1 or value >= 1


RANGES: tuple[tuple[str, str, Callable[[float], bool], str], ...] = (
    (
        "cluster",
        "actor_num_nodes actor_num_gpus_per_node rollout_num_gpus_per_engine num_gpus_per_node "
        "distributed_timeout_minutes",
        is_positive,
        "1 or more",
    ),
    ("cluster", "rollout_num_gpus", is_not_negative, "0 or more"),
    ("cluster", "heartbeat_timeout", is_above_zero, "above 0"),
    (
        "data",
        "rollout_batch_size n_samples_per_prompt num_epoch rollout_max_prompt_len",
        is_positive,
        "1 or more",
    ),
    ("data", "num_rollout start_rollout_id", is_not_negative, "0 or more"),
    ("rollout", "rollout_top_p", is_share, "above 0 and at most 1"),
    ("rollout", "rollout_top_k", is_top_k, "-1 (all) or 1 or more"),
    (
        "rollout",
        "rollout_max_response_len over_sampling_batch_size",
        is_positive,
        "1 or more",
    ),
    ("rollout", "rollout_max_context_len", lambda value: value >= 2, "2 or more"),
    ("rollout", "rollout_min_new_tokens", is_not_negative, "0 or more"),
    (
        "engine",
        "engine_max_running engine_block_size engine_cache_tokens engine_prefill_tokens "
        "sglang_server_concurrency",
        is_positive,
        "1 or more",
    ),
    ("engine", "sglang_mem_fraction_static", is_share, "above 0 and at most 1"),
    ("reward", "reward_workers", is_positive, "1 or more"),
    ("reward", "reward_timeout_s", is_above_zero, "more than 0 seconds"),
    ("eval", "eval_interval eval_max_prompt_len", is_positive, "1 or more"),
    ("algo", "eps_clip eps_clip_high value_clip", is_above_zero, "more than 0"),
    ("algo", "kl_coef kl_loss_coef moe_aux_loss_coeff", is_not_negative, "0 or more"),
    ("algo", "gamma lambd", is_closed_share, "0 to 1"),
    ("algo", "ref_update_interval overlong_max_len", is_positive, "1 or more"),
    (
        "algo",
        "lora_rank overlong_buffer_len overlong_penalty_factor num_critic_only_steps critic_lr "
        "critic_lr_warmup_iters tis_clip_low tis_lower_bound rs_lower_bound",
        is_not_negative,
        "0 or more",
    ),
    ("algo", "lora_alpha tis_clip tis_upper_bound rs_upper_bound", is_above_zero, "more than 0"),
    ("algo", "entropy_coef", isfinite, "a finite number"),
    (
        "optim",
        "lr min_lr lr_warmup_init weight_decay clip_grad lr_warmup_iters",
        is_not_negative,
        "0 or more",
    ),
    ("optim", "lr_warmup_fraction", is_closed_share, "0 to 1"),
    ("optim", "lr_decay_iters", is_positive, "1 or more"),
    ("optim", "adam_beta1 adam_beta2", is_momentum, "0 or more and below 1"),
    ("optim", "adam_eps", is_above_zero, "more than 0"),
    (
        "batch",
        "global_batch_size num_steps_per_rollout micro_batch_size max_tokens_per_gpu "
        "log_probs_max_tokens_per_gpu data_pad_size_multiplier",
        is_positive,
        "1 or more",
    ),
    ("batch", "log_probs_chunk_size", is_top_k, "-1 (chosen by size) or 1 or more"),
    (
        "parallel",
        "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
        "expert_model_parallel_size expert_tensor_parallel_size recompute_num_layers",
        is_positive,
        "1 or more",
    ),
    ("checkpoint", "save_interval", is_positive, "1 or more"),
    ("checkpoint", "ckpt_step ref_ckpt_step", is_not_negative, "0 or more"),
    ("sync", "update_weights_interval update_weight_buffer_size", is_positive, "1 or more"),
    ("sync", "max_staleness", is_not_negative, "0 or more"),
    ("debug", "seed", is_not_negative, "0 or more"),
    ("debug", "load_debug_rollout_data_subsample", is_share, "above 0 and at most 1"),
    ("debug", "ci_train_rollout_logprob_abs_diff_threshold", is_above_zero, "more than 0"),
)
"""Section, fields, what must hold for a value, and the same in words."""
