"""Every refusal: what cannot work, said in one go (dialect 2.10 and common sense)."""

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from tandem.config import not_yet
from tandem.config.config import Config
from tandem.config.engines import server_rules
from tandem.config.overlap import overlapping
from tandem.config.ranges import NOT_NEGATIVE, POSITIVE, SHARE, TOP_K, out_of_range
from tandem.config.splits import splits
from tandem.errors import ConfigError

REWARDS = (
    "deepscaler",
    "math",
    "math_verify",
    "dapo",
    "f1",
    "gpqa",
    "random",
    "remote_rm",
)


def check(cfg: Config) -> tuple[str, ...]:
    """Everything that cannot work, a sentence each; empty when the run may start."""
    failures = [failure for rule in RULES for failure in rule(cfg)]
    return (*failures, *not_yet.refusals(cfg))


def check_files(cfg: Config) -> None:
    """Passes if every file and folder that is read at the start is there; else ConfigError."""
    failures = list(_missing_files(cfg))
    if failures:
        raise ConfigError(failures)


def _required(cfg: Config) -> Iterator[str]:
    if not cfg.model.hf_checkpoint:
        yield "--hf-checkpoint is required: the Hugging Face folder of the model"
    if cfg.data.rollout_batch_size is None:
        yield "--rollout-batch-size is required: how many prompts a rollout takes"
    if cfg.data.num_rollout is None and cfg.data.num_epoch is None:
        yield "--num-rollout is required (or --num-epoch): how many rollouts the run has"
    if cfg.data.disable_rollout_global_dataset and not cfg.data.data_source_path:
        yield "--disable-rollout-global-dataset needs --data-source-path, where prompts come from"
    elif _takes_prompts(cfg) and not cfg.data.prompt_data and not cfg.data.data_source_path:
        yield "--prompt-data is required: a .jsonl or .parquet file of prompts"
    is_sampling = cfg.algo.loss_type != "sft_loss"
    if is_sampling and cfg.rollout.rollout_max_response_len is None:
        yield "--rollout-max-response-len is required (or --rollout-max-context-len)"


def _takes_prompts(cfg: Config) -> bool:
    """Whether the run needs training prompts: not to evaluate alone, nor to replay a dump."""
    debug = cfg.debug
    has_replay = debug.load_debug_rollout_data or debug.load_forge_rollout_data
    is_replay = has_replay is not None and cfg.data.num_rollout is not None
    return cfg.data.num_rollout != 0 and not is_replay


def _sampling(cfg: Config) -> Iterator[str]:
    rollout, data = cfg.rollout, cfg.data
    if not (isfinite(rollout.rollout_temperature) and rollout.rollout_temperature > 0):
        yield (
            f"--rollout-temperature {rollout.rollout_temperature}: wanted a number above 0, "
            "because the trainer divides logits by it; greedy answers are for --eval-temperature 0"
        )
    context, longest = rollout.rollout_max_context_len, data.rollout_max_prompt_len
    if context is not None and longest is not None and longest > context - 1:
        yield (
            f"--rollout-max-prompt-len {longest} leaves no room for a response in "
            f"--rollout-max-context-len {context}; set at most {context - 1}"
        )
    fetched, needed = rollout.over_sampling_batch_size, data.rollout_batch_size
    if fetched is not None and needed is not None and fetched < needed:
        yield (
            f"--over-sampling-batch-size {fetched} is less than --rollout-batch-size {needed}; "
            f"set at least {needed}"
        )


def _batches(cfg: Config) -> Iterator[str]:
    batch, data = cfg.batch, cfg.data
    prompts, group = data.rollout_batch_size, data.n_samples_per_prompt
    steps, size = batch.num_steps_per_rollout, batch.global_batch_size
    if batch.use_dynamic_batch_size and batch.max_tokens_per_gpu is None:
        yield "--use-dynamic-batch-size needs --max-tokens-per-gpu, the tokens of a row"
    if batch.balance_by_flops and not batch.use_dynamic_batch_size:
        yield "--balance-by-flops needs --use-dynamic-batch-size"
    if prompts is None or not steps or not size or min(prompts, group, steps, size) < 1:
        return
    samples = prompts * group
    made = f"--rollout-batch-size {prompts} x --n-samples-per-prompt {group} = {samples} samples"
    if "global_batch_size" in _said(cfg):
        if samples % size:
            fitting = max(d for d in range(1, min(size, samples) + 1) if samples % d == 0)
            yield (
                f"--global-batch-size {size} does not divide {made}, and the rest would never be "
                f"trained; try {fitting}"
            )
        elif steps * size != samples:
            yield (
                f"--num-steps-per-rollout {steps} x --global-batch-size {size} is not {made}; "
                "leave one of them out"
            )
    elif samples % steps:
        yield f"--num-steps-per-rollout {steps} does not divide {made}"


def _placement(cfg: Config) -> Iterator[str]:
    cluster, debug = cfg.cluster, cfg.debug
    num_samplers, per_engine = cluster.rollout_num_gpus, cluster.rollout_num_gpus_per_engine
    is_half = debug.debug_train_only or debug.debug_rollout_only
    is_uneven = num_samplers is not None and num_samplers % per_engine != 0
    has_servers = cfg.engine.rollout_engine == "sglang"
    if num_samplers is not None and is_uneven and (has_servers or cluster.runtime == "ray"):
        yield (
            f"--rollout-num-gpus {num_samplers} is not a multiple of --rollout-num-gpus-per-engine "
            f"{per_engine}; try {num_samplers - num_samplers % per_engine or per_engine}"
        )
    if has_servers:
        yield from server_rules(cfg)
        return
    if cfg.rollout.rollout_external_engine_addrs:
        yield "--rollout-external-engine-addrs needs --rollout-engine sglang"
    if cluster.runtime == "local":
        is_apart = "rollout_num_gpus" in _said(cfg) and not (cluster.colocate or is_half)
        if max(cluster.num_trainers, num_samplers or 1) > 1:
            yield (
                "--runtime local is one process on one device, and the flags ask for more; leave "
                "--runtime out"
            )
        elif is_apart and num_samplers:
            yield (
                "--runtime local is one process on one device, and --rollout-num-gpus 1 asks for "
                "one besides the trainer's; add --colocate, or leave --runtime out"
            )
        return
    has_samplers = debug.debug_train_only or cfg.algo.loss_type == "sft_loss"
    if not num_samplers and not has_samplers:
        yield (
            "--runtime ray needs --rollout-num-gpus, the devices that sample, or --colocate, by "
            "which they are those that train"
        )
    elif cluster.colocate and num_samplers and not is_uneven and not cluster.engines_cover_ranks:
        yield (
            f"--rollout-num-gpus-per-engine {per_engine} with --colocate wants engines on all "
            f"{cluster.num_trainers} devices that train: set a divisor, and no --rollout-num-gpus"
        )


def _rewards(cfg: Config) -> Iterator[str]:
    reward = cfg.reward
    name = (reward.rm_type or "").removeprefix("boxed_")
    if name == "ifbench":
        yield (
            "--rm-type ifbench: its checker is a repository that would be downloaded during the "
            "run; install it yourself and call it with --custom-rm-path"
        )
    elif name and name not in REWARDS and not reward.custom_rm_path:
        yield f"--rm-type {reward.rm_type}: wanted one of {', '.join(REWARDS)}, or boxed_ and one"
    if name == "remote_rm" and not reward.rm_url:
        yield "--rm-type remote_rm needs --rm-url, the address of the service"
    if reward.group_rm and not reward.custom_rm_path:
        yield "--group-rm needs --custom-rm-path: no reward by name judges a whole group"


def _algorithm(cfg: Config) -> Iterator[str]:
    algo = cfg.algo
    if algo.kl_coef != 0 and algo.kl_loss_coef != 0:
        yield "--kl-coef and --kl-loss-coef are both set; KL goes into the reward or into the loss"
    if algo.eps_clip_c is not None and algo.eps_clip_c <= 1:
        yield f"--eps-clip-c {algo.eps_clip_c}: wanted a number above 1"
    if algo.advantage_estimator.startswith("reinforce_plus") and not algo.normalize_advantages:
        yield f"--advantage-estimator {algo.advantage_estimator} needs --normalize-advantages"
    if algo.use_rollout_logprobs and algo.use_tis:
        yield "--use-rollout-logprobs and --use-tis exclude each other: TIS needs both log-probs"
    if algo.use_rs and algo.tis_function != "mis" and not algo.custom_tis_function_path:
        yield "--use-rs needs --tis-function mis: the other corrections reject nothing"
    if algo.tis_batch_normalize and algo.custom_tis_function_path:
        yield "--tis-batch-normalize is for --tis-function; a function of yours normalises itself"
    if algo.loss_type == "custom_loss" and not algo.custom_loss_function_path:
        yield "--loss-type custom_loss needs --custom-loss-function-path"
    if algo.loss_type == "sft_loss" and algo.use_kl_loss:
        yield "--loss-type sft_loss has no KL term; leave --use-kl-loss out"
    if algo.loss_type == "custom_loss" and (algo.use_kl_loss or algo.entropy_coef):
        yield (
            "--loss-type custom_loss is all of the loss; leave --use-kl-loss and --entropy-coef "
            "out and add such terms yourself"
        )
    yield from _distillation(cfg)


def _distillation(cfg: Config) -> Iterator[str]:
    algo = cfg.algo
    if algo.use_opd and algo.opd_type is None:
        yield "--use-opd needs --opd-type sglang or megatron"
    if algo.use_opd and algo.opd_type == "megatron" and not algo.opd_teacher_load:
        yield "--opd-type megatron needs --opd-teacher-load, the teacher's checkpoint"
    if algo.use_opd and algo.opd_type == "sglang" and algo.opd_teacher_load:
        yield "--opd-type sglang asks a server; leave --opd-teacher-load out"
    if not algo.use_opd and algo.opd_teacher_load:
        yield "--opd-teacher-load needs --use-opd"


def _experts(cfg: Config) -> Iterator[str]:
    algo, rollout = cfg.algo, cfg.rollout
    if algo.moe_router_load_balancing_type == "seq_aux_loss" and algo.moe_aux_loss_coeff:
        yield (
            "--moe-router-load-balancing-type seq_aux_loss: "
            f"{not_yet.said('a balance loss for each sequence')}; set aux_loss, which is for each "
            "packed row, or --moe-aux-loss-coeff 0"
        )
    if not algo.use_rollout_routing_replay:
        if algo.use_routing_replay and algo.keep_old_actor:
            yield (
                "--use-routing-replay and --keep-old-actor exclude each other: the old log-probs "
                "come of several models, whose experts differ; leave one out"
            )
        return
    for flag, is_set in (
        ("--rollout-engine sglang", cfg.engine.rollout_engine == "sglang"),
        ("--rollout-function-path", rollout.rollout_function_path),
        ("--custom-generate-function-path", rollout.custom_generate_function_path),
    ):
        if is_set:
            yield (
                f"--use-rollout-routing-replay beside {flag}: "
                f"{not_yet.said('experts recorded there')}; use --use-routing-replay, which "
                "records those of the old log-probs"
            )


def _evaluation(cfg: Config) -> Iterator[str]:
    if not cfg.eval.eval_sets:
        if cfg.eval.eval_interval is not None:
            yield "--eval-interval needs --eval-prompt-data or --eval-config"
        elif cfg.data.num_rollout == 0:
            yield "--num-rollout 0 evaluates only, which needs --eval-prompt-data or --eval-config"
    for entry in cfg.eval.eval_sets:
        where = f"evaluation set {entry.name}"
        for name, bound in (
            ("n_samples_per_eval_prompt", POSITIVE),
            ("temperature", NOT_NEGATIVE),
            ("top_p", SHARE),
            ("top_k", TOP_K),
            ("max_response_len", POSITIVE),
        ):
            value = getattr(entry, name)
            if value is not None and not bound.holds(value):
                yield f"{where}: {name} {value}: wanted {bound.wanted}"
        if entry.max_response_len is None:
            yield f"{where} needs --eval-max-response-len or --rollout-max-response-len"
        name = (entry.rm_type or "").removeprefix("boxed_")
        if name and name not in REWARDS and not (entry.custom_rm_path or cfg.reward.custom_rm_path):
            yield f"{where}: rm_type {entry.rm_type}: wanted one of {', '.join(REWARDS)}"


def _optimizer(cfg: Config) -> Iterator[str]:
    optim = cfg.optim
    if optim.min_lr > optim.lr:
        yield f"--min-lr {optim.min_lr} is above --lr {optim.lr}"
    if optim.lr_warmup_iters and optim.lr_warmup_fraction is not None:
        yield "--lr-warmup-iters and --lr-warmup-fraction are both set; leave one out"
    if optim.only_train_params_name_list and optim.freeze_params_name_list:
        yield "--only-train-params-name-list and --freeze-params-name-list exclude each other"
    if optim.use_stateless_adam and not cfg.checkpoint.no_save_optim:
        yield "--use-stateless-adam needs --no-save-optim: there is no optimizer state to save"
    is_low = {optim.exp_avg_dtype, optim.exp_avg_sq_dtype} != {"fp32"}
    if is_low and not optim.use_precision_aware_optimizer:
        yield (
            "--exp-avg-dtype and --exp-avg-sq-dtype other than fp32 need "
            "--use-precision-aware-optimizer"
        )
    if cfg.algo.lora_rank and (optim.only_train_params_name_list or optim.freeze_params_name_list):
        yield (
            "--lora-rank trains adapters alone: choose their matrices with --lora-target-modules "
            "and leave out --only-train-params-name-list and --freeze-params-name-list"
        )


def _checkpoints(cfg: Config) -> Iterator[str]:
    if cfg.checkpoint.save_interval is not None and not cfg.checkpoint.save:
        yield "--save-interval needs --save, the folder to save to"
    if cfg.sync.update_weight_transport == "disk" and not cfg.sync.update_weight_disk_dir:
        yield "--update-weight-transport disk needs --update-weight-disk-dir"
    if cfg.sync.update_weight_mode == "delta":
        is_possible = (
            cfg.sync.update_weight_transport == "disk"
            and not cfg.cluster.colocate
            and cfg.sync.update_weight_local_checkpoint_dir
        )
        if not is_possible:
            yield (
                "--update-weight-mode delta needs --update-weight-transport disk, "
                "--update-weight-local-checkpoint-dir, and no --colocate"
            )
    if cfg.sync.release_train and not cfg.checkpoint.save:
        yield "--release-train needs --save, from which trainers come back"


def _debugging(cfg: Config) -> Iterator[str]:
    debug = cfg.debug
    if debug.debug_rollout_only and debug.debug_train_only:
        yield "--debug-rollout-only and --debug-train-only exclude each other"
    has_rollouts = debug.load_debug_rollout_data or cfg.algo.loss_type == "sft_loss"
    if debug.debug_train_only and not has_rollouts:
        yield (
            "--debug-train-only starts no engine, so nothing is sampled: it needs "
            "--load-debug-rollout-data or --loss-type sft_loss"
        )
    if (
        debug.save_debug_rollout_data
        and debug.save_debug_rollout_data == debug.save_debug_train_data
    ):
        yield "--save-debug-rollout-data and --save-debug-train-data name the same files"
    if debug.load_debug_rollout_data and debug.load_forge_rollout_data:
        yield (
            "--load-debug-rollout-data trains alone and --load-forge-rollout-data keeps engines; "
            "leave one of them out"
        )
    has_replay = debug.load_debug_rollout_data or debug.load_forge_rollout_data
    if debug.load_debug_rollout_data_subsample is not None and not has_replay:
        yield "--load-debug-rollout-data-subsample needs --load-debug-rollout-data"


def _said(cfg: Config) -> set[str]:
    """Names of the fields that the user gave."""
    return {name for name, origin in cfg.origins.items() if not origin.startswith("derived")}


def _missing_files(cfg: Config) -> Iterator[str]:
    checkpoint = cfg.model.hf_checkpoint
    if checkpoint and not (Path(checkpoint) / "config.json").is_file():
        yield (
            f"--hf-checkpoint {checkpoint} is no Hugging Face folder: it has no config.json; "
            "give the folder of a downloaded model"
        )
    if cfg.data.prompt_data and cfg.data.num_rollout != 0:
        yield from _missing("--prompt-data", cfg.data.prompt_data)
    for entry in cfg.eval.eval_sets:
        yield from _missing(f"evaluation set {entry.name}:", entry.path)
    reference = cfg.checkpoint.ref_load
    needs_reference = cfg.algo.has_reference and cfg.data.num_rollout != 0
    if needs_reference and reference and not Path(reference).is_dir():
        yield (
            f"--ref-load {reference} is no folder; it holds the reference model for KL, "
            "and is --hf-checkpoint when left out"
        )


def _missing(flag: str, path: str) -> Iterator[str]:
    file = path.partition("@[")[0]
    if not Path(file).is_file():
        yield f"{flag} {file} is not there"
    elif not file.endswith((".jsonl", ".parquet")):
        yield f"{flag} {file}: wanted a .jsonl or .parquet file"


RULES = (
    _required,
    out_of_range,
    _sampling,
    _batches,
    _placement,
    _rewards,
    _algorithm,
    _experts,
    _evaluation,
    _optimizer,
    _checkpoints,
    splits,
    overlapping,
    _debugging,
)
