"""Settings that were given and change nothing in this configuration, with the reason."""

from collections.abc import Collection, Iterator

from tandem.config.config import Config
from tandem.config.fields import flag_of, knobs
from tandem.config.sections.run import ClusterConfig

NEEDS = (
    ("tb_project_name tb_experiment_name", "use_tensorboard"),
    (
        "wandb_mode wandb_dir wandb_key wandb_host wandb_team wandb_group wandb_project "
        "wandb_run_id disable_wandb_random_suffix wandb_always_use_train_step",
        "use_wandb",
    ),
    ("kl_loss_coef use_unbiased_kl", "use_kl_loss"),
    ("rs_level rs_lower_bound rs_upper_bound rs_veto_threshold", "use_rs"),
    ("lora_alpha lora_target_modules", "lora_rank"),
    ("overlong_penalty_factor overlong_max_len", "overlong_buffer_len"),
    ("opsm_delta", "use_opsm"),
    ("opd_kl_coef", "use_opd"),
    ("recompute_method recompute_num_layers", "recompute_granularity"),
    ("no_save_optim", "save"),
    ("exp_avg_dtype exp_avg_sq_dtype", "use_precision_aware_optimizer"),
    ("ci_disable_kl_checker ci_train_rollout_logprob_abs_diff_threshold", "ci_test"),
    ("mask_offpolicy_in_partial_rollout buffer_filter_path", "partial_rollout"),
    ("apply_chat_template_kwargs", "apply_chat_template"),
    ("max_tokens_per_gpu log_probs_max_tokens_per_gpu balance_by_flops", "use_dynamic_batch_size"),
    (
        "rollout_health_check_interval rollout_health_check_timeout "
        "rollout_health_check_first_wait",
        "use_fault_tolerance",
    ),
)
"""Settings that only matter beside another one."""

ONE_PROCESS = (
    "num_gpus_per_node distributed_backend distributed_timeout_minutes rollout_data_transport"
)


def without_effect(cfg: Config) -> dict[str, str]:
    """What was said in vain, each with the reason."""
    table = knobs()
    said = {
        name: getattr(getattr(cfg, table[name].section), name)
        for name, origin in cfg.origins.items()
        if name in table and not origin.startswith("derived")
    }
    pairs: dict[str, str] = {}
    for names, gate in NEEDS:
        if not getattr(getattr(cfg, table[gate].section), gate):
            for name in names.split():
                # asking for nothing, as `--kl-loss-coef 0`, needs no remark
                if said.get(name):
                    pairs[_told(name, said[name])] = f"{flag_of(gate)} is not set"
    for names, reason in _situations(cfg):
        for name in names.split():
            if name in said and said[name] is not False:
                pairs[_told(name, said[name])] = reason
    pairs |= dict(_foreign(cfg))
    return pairs


def _told(name: str, value: object) -> str:
    if value is True or knobs()[name].is_secret:
        return flag_of(name)
    return f"{flag_of(name)} {value}"


CARRIED = (
    "update_weight_mode update_weight_transport update_weight_buffer_size update_weight_disk_dir "
    "update_weight_disk_keep_files update_weight_local_checkpoint_dir "
    "custom_update_weight_post_write_path"
)
"""How weights travel between processes."""


def _is_shared(cluster: ClusterConfig) -> bool:
    """Whether every engine is on devices that train."""
    return cluster.colocate and (cluster.rollout_num_gpus or 0) <= cluster.num_trainers


def _situations(cfg: Config) -> Iterator[tuple[str, str]]:
    yield from _places(cfg)
    yield from _turns(cfg)
    if cfg.engine.rollout_engine == "torch":
        yield "sglang_python sglang_router_request_timeout_secs", "the embedded engine samples"
    if cfg.parallel.tensor_model_parallel_size == 1:
        yield "sequence_parallel", "there is no tensor parallelism"
    if cfg.parallel.recompute_granularity == "selective":
        yield "recompute_method recompute_num_layers", "selective recompute treats all layers alike"
    if cfg.batch.use_dynamic_batch_size:
        yield "micro_batch_size", "rows are filled by tokens (--use-dynamic-batch-size)"
    if cfg.rollout.custom_convert_samples_to_train_data_path:
        yield (
            "custom_reward_post_process_path",
            "--custom-convert-samples-to-train-data-path gives the rewards as they are compared",
        )
    if cfg.data.num_rollout is not None:
        yield "num_epoch", "--num-rollout wins"
    if cfg.eval.eval_config:
        yield "eval_prompt_data", "--eval-config wins"
    yield from _algorithm(cfg)
    if cfg.optim.lr_decay_style == "constant":
        yield (
            "min_lr lr_decay_iters",
            "the learning rate does not decay (--lr-decay-style constant)",
        )
    yield from _weight_update(cfg)
    yield (
        "overlap_cpu_optimizer_d2h_h2d",
        "the copies of --optimizer-cpu-offload always overlap with the update",
    )
    yield "attention_backend", "the fastest kernel that runs here is always taken"
    yield "model_name", "the family is the model_type of the checkpoint, read once"
    yield (
        "no_save_rng no_load_rng",
        "a run has no random state: every token is drawn by its own key, from --rollout-seed",
    )


def _places(cfg: Config) -> Iterator[tuple[str, str]]:
    if cfg.cluster.runtime == "local":
        yield ONE_PROCESS, "there is one process"
        if cfg.engine.rollout_engine == "torch":
            yield CARRIED, "there is one process"
            yield "colocate", "training and sampling share this process's device anyway"
            yield (
                "offload_rollout",
                "the engine's cache sleeps anyway where training needs its room",
            )
        yield "balance_data", "there is one data-parallel rank"
        yield "train_env_vars", "training goes on in the process that you start"
        yield "heartbeat_timeout", "there is one process, whose stack py-spy shows"
        yield (
            "use_fault_tolerance",
            "the embedded engine has no server that could die by itself; a run that stops resumes "
            "from its checkpoint",
        )
    elif cfg.engine.rollout_engine == "torch" and _is_shared(cfg.cluster):
        yield (
            "use_fault_tolerance",
            "engines are in the processes of ranks, which stop the run where one fails; it resumes "
            "from its checkpoint",
        )
    if cfg.cluster.runtime == "ray":
        yield "num_gpus_per_node", "Ray says what each host has"


def _turns(cfg: Config) -> Iterator[tuple[str, str]]:
    """Settings of who sleeps when, where nobody does."""
    both = "offload offload_train offload_rollout"
    has_own_engine = cfg.cluster.runtime == "local" and cfg.engine.rollout_engine == "torch"
    if cfg.debug.debug_train_only or cfg.debug.debug_rollout_only:
        yield both, "one half of the run is left out, so there are no turns"
    elif cfg.sync.asynchronous != "off":
        yield both, "training goes on while engines sample"
    elif not (cfg.cluster.colocate or has_own_engine):
        yield both, "training and sampling have devices of their own"
    elif cfg.optim.optimizer_cpu_offload:
        yield (
            "offload_train",
            "--optimizer-cpu-offload has the optimizer's state in host memory all the time",
        )


def _weight_update(cfg: Config) -> Iterator[tuple[str, str]]:
    if cfg.sync.update_weight_mode == "full":
        yield "update_weight_delta_encoding update_weight_delta_checksum", "all weights are updated"
    if cfg.sync.update_weight_transport != "disk":
        yield (
            "update_weight_disk_dir update_weight_disk_keep_files "
            "update_weight_local_checkpoint_dir custom_update_weight_post_write_path",
            "weights do not travel through a folder (--update-weight-transport disk)",
        )
    yield "check_weight_update_equal", "every weight update is compared anyway"


def _algorithm(cfg: Config) -> Iterator[tuple[str, str]]:
    """Settings of another algorithm."""
    algo = cfg.algo
    name = algo.advantage_estimator
    if not algo.has_critic:
        yield (
            "value_clip lambd num_critic_only_steps critic_lr critic_lr_warmup_iters",
            "there is no critic",
        )
        if name != "reinforce_plus_plus":
            yield "gamma", f"{name} does not discount"
    if name in ("grpo", "gspo", "cispo") and algo.kl_coef != 0:
        yield "kl_coef", f"{name} takes no KL off the reward, it is only reported (--use-kl-loss)"
    if not algo.moe_aux_loss_coeff:
        yield "moe_router_load_balancing_type", "--moe-aux-loss-coeff is 0"
    if not algo.has_reference:
        yield "kl_loss_type ref_update_interval", "there is no KL term, so no reference"
    is_corrected = algo.use_tis or algo.use_rs or algo.get_mismatch_metrics
    if not is_corrected:
        yield "tis_clip tis_clip_low tis_function custom_tis_function_path", "--use-tis is not set"
    if not is_corrected or algo.tis_function != "mis":
        yield (
            "tis_level tis_mode tis_upper_bound tis_lower_bound",
            "they steer --tis-function mis",
        )
    if not is_corrected or algo.custom_tis_function_path:
        yield "tis_batch_normalize", "there are no weights to normalise"


def _foreign(cfg: Config) -> Iterator[tuple[str, str]]:
    """Flags of SGLang and its router, when SGLang does not sample."""
    if cfg.engine.rollout_engine == "sglang":
        return
    reason = "the embedded engine samples; they are for SGLang"
    ours: Collection[str] = {
        name.removeprefix("sglang_").replace("_", "-") for name in knobs() if "sglang_" in name
    }
    flags = {
        "--sglang-": {key: w for key, w in cfg.passthrough.sglang.items() if key not in ours},
        "--router-": cfg.passthrough.router,
    }
    for prefix, owned in flags.items():
        for name, words in owned.items():
            yield " ".join((prefix + name, *words)), reason
