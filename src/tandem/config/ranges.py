"""Numbers that a setting can be."""

from collections.abc import Callable, Iterator
from math import isfinite
from typing import NamedTuple

from tandem.config.config import Config
from tandem.config.fields import flag_of, knobs


class Bound(NamedTuple):
    """What a number must be, in words, and whether it is."""

    wanted: str
    holds: Callable[[float], bool]


def out_of_range(cfg: Config) -> Iterator[str]:
    """One sentence for every number that its field cannot be."""
    bounds = {name: bound for bound, names in RANGES for name in names.split()}
    for name, knob in knobs().items():
        value = getattr(getattr(cfg, knob.section), name)
        if name in bounds and value is not None:
            wanted, holds = bounds[name]
            if not (isfinite(value) and holds(value)):
                yield f"{flag_of(name)} {value}: wanted {wanted}"


POSITIVE = Bound("1 or more", lambda value: value >= 1)
NOT_NEGATIVE = Bound("0 or more", lambda value: value >= 0)
ABOVE_ZERO = Bound("above 0", lambda value: value > 0)
SHARE = Bound("above 0 and at most 1", lambda value: 0 < value <= 1)
CLOSED_SHARE = Bound("0 to 1", lambda value: 0 <= value <= 1)
TOP_K = Bound("-1 (all) or 1 or more", lambda value: value == -1 or value >= 1)

RANGES = (
    (
        POSITIVE,
        "actor_num_nodes actor_num_gpus_per_node rollout_num_gpus_per_engine num_gpus_per_node "
        "distributed_timeout_minutes rollout_max_prompt_len num_epoch rollout_batch_size "
        "n_samples_per_prompt rollout_max_response_len over_sampling_batch_size engine_max_running "
        "engine_block_size engine_cache_tokens engine_prefill_tokens sglang_server_concurrency "
        "reward_workers eval_interval eval_max_prompt_len overlong_max_len ref_update_interval "
        "lr_decay_iters global_batch_size num_steps_per_rollout micro_batch_size "
        "max_tokens_per_gpu log_probs_max_tokens_per_gpu data_pad_size_multiplier "
        "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
        "expert_model_parallel_size expert_tensor_parallel_size recompute_num_layers save_interval "
        "update_weights_interval update_weight_buffer_size decoder_first_pipeline_num_layers "
        "decoder_last_pipeline_num_layers num_layers_per_virtual_pipeline_stage "
        "num_virtual_stages_per_pipeline_rank",
    ),
    (
        NOT_NEGATIVE,
        "rollout_num_gpus num_rollout start_rollout_id rollout_min_new_tokens overlong_buffer_len "
        "overlong_penalty_factor kl_coef kl_loss_coef tis_clip_low tis_lower_bound rs_lower_bound "
        "moe_aux_loss_coeff num_critic_only_steps critic_lr critic_lr_warmup_iters lora_rank lr "
        "min_lr lr_warmup_iters lr_warmup_init weight_decay clip_grad ckpt_step ref_ckpt_step "
        "max_staleness seed",
    ),
    (
        ABOVE_ZERO,
        "heartbeat_timeout reward_timeout_s eps_clip eps_clip_high value_clip tis_clip "
        "tis_upper_bound rs_upper_bound lora_alpha adam_eps "
        "ci_train_rollout_logprob_abs_diff_threshold",
    ),
    (SHARE, "rollout_top_p sglang_mem_fraction_static load_debug_rollout_data_subsample"),
    (CLOSED_SHARE, "gamma lambd lr_warmup_fraction"),
    (Bound("0 or more and below 1", lambda value: 0 <= value < 1), "adam_beta1 adam_beta2"),
    (Bound("2 or more", lambda value: value >= 2), "rollout_max_context_len"),
    (TOP_K, "rollout_top_k"),
    (Bound("-1 (chosen by size) or 1 or more", TOP_K.holds), "log_probs_chunk_size"),
    (Bound("a finite number", isfinite), "entropy_coef"),
)
"""Bounds, and the fields that they hold for."""
