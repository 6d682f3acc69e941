"""From judged answers to new weights in the engines."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgoConfig:
    """Algorithm"""

    advantage_estimator: Literal[
        "grpo",
        "gspo",
        "cispo",
        "rloo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "ppo",
    ] = "grpo"
    """How advantages follow from rewards."""
    overlong_buffer_len: int = 0
    """Tokens before the limit in which a growing penalty comes off the reward (DAPO); 0: none."""
    overlong_penalty_factor: float = 1.0
    """The penalty at the limit."""
    overlong_max_len: int | None = None
    """The limit, in tokens of the answer; `rollout_max_response_len` when unset."""
    disable_compute_advantages_and_returns: bool = False
    """Compute no advantages (supervised and custom losses)."""
    disable_rewards_normalization: bool = False
    """Do not subtract the group's mean reward."""
    disable_grpo_std_normalization: bool = False
    """Do not divide by the group's standard deviation (Dr. GRPO)."""
    normalize_advantages: bool = False
    """Whiten advantages over the trained tokens of the rollout."""
    custom_advantage_function_path: str | None = None
    """Hook `fn(args, rollout_data)` that sets advantages and returns."""
    loss_type: Literal["policy_loss", "sft_loss", "custom_loss"] = "policy_loss"
    """What the trainer minimises."""
    custom_loss_function_path: str | None = None
    """Hook `fn(args, batch, logits, sum_of_sample_mean) -> (loss, metrics)`."""
    custom_pg_loss_reducer_function_path: str | None = None
    """Hook that returns the reducer of the policy term."""
    calculate_per_token_loss: bool = False
    """Mean over all tokens of a step instead of over samples' means."""
    eps_clip: float = 0.2
    """The probability ratio is clipped below at 1 - eps."""
    eps_clip_high: float | None = None
    """The probability ratio is clipped above at 1 + eps; `eps_clip` when unset."""
    eps_clip_c: float | None = None
    """Bound of the loss for negative advantages (dual clip), above 1; off when unset."""
    value_clip: float = 0.2
    """Clip of the critic's change."""
    kl_coef: float = 0.0
    """Weight of the KL penalty in the reward."""
    use_kl_loss: bool = False
    """Add KL to the reference model to the loss; it is reported even at weight 0."""
    kl_loss_coef: float = 0.0
    """Weight of the KL term."""
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    """Estimator of KL; `low_var_kl` is k3, clamped."""
    use_unbiased_kl: bool = False
    """Multiply the KL estimate by the probability ratio to the sampling policy."""
    ref_update_interval: int | None = None
    """Rollouts after which the reference becomes the policy; never when unset."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    use_rollout_entropy: bool = False
    """Report entropy from the log-prob pass too."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lambd: float = 1.0
    """Lambda of generalised advantage estimation."""
    use_rollout_logprobs: bool = False
    """Old log-probs are the engine's."""
    use_tis: bool = False
    """Weight tokens by the truncated ratio of trainer to engine probability."""
    tis_clip: float = 2.0
    """Upper bound of that ratio."""
    tis_clip_low: float = 0.0
    """Lower bound of that ratio."""
    tis_function: Literal["tis", "icepop", "mis"] = "tis"
    """What that weight is: the truncated ratio, the ratio or 0 outside the bounds (IcePop), or
    masked importance sampling, which the flags below steer."""
    tis_level: Literal["token", "sequence", "geometric"] = "token"
    """Ratio of the token, of the whole sequence, or its geometric mean over the sequence."""
    tis_mode: Literal["truncate", "clip", "mask"] = "truncate"
    """Bound the ratio above, bound it on both sides, or drop tokens outside the bounds."""
    tis_upper_bound: float = 2.0
    """Upper bound of masked importance sampling."""
    tis_lower_bound: float | None = None
    """Lower bound; 1 / `tis_upper_bound` when unset."""
    tis_batch_normalize: bool = False
    """Divide the weights by their mean over the step."""
    use_rs: bool = False
    """Drop tokens whose ratio is outside bounds of its own (rejection sampling)."""
    rs_level: Literal["token", "sequence", "geometric"] | None = None
    """Level of that; `tis_level` when unset."""
    rs_lower_bound: float | None = None
    """Lower bound; that of the weights when unset."""
    rs_upper_bound: float | None = None
    """Upper bound; that of the weights when unset."""
    rs_veto_threshold: float | None = None
    """Drop a whole sequence for one token whose ratio is below this; off when unset."""
    custom_tis_function_path: str | None = None
    """Hook in place of the truncated ratio."""
    get_mismatch_metrics: bool = False
    """Report the trainer-engine mismatch without correcting it."""
    use_opsm: bool = False
    """Mask sequences with negative advantage that are too far off policy."""
    opsm_delta: float = 1e-4
    """Sequence KL above which they are masked."""
    use_routing_replay: bool = False
    """Replay the experts of the log-prob pass in the training pass."""
    use_rollout_routing_replay: bool = False
    """Replay the engine's experts in training; turns the former on."""
    moe_aux_loss_coeff: float = 0.0
    """Weight of the loss that keeps experts equally busy; 0: there is none."""
    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "none"] = "aux_loss"
    """Over what that loss is taken: `aux_loss` each packed row, `seq_aux_loss` each sequence."""
    keep_old_actor: bool = False
    """Keep the previous policy's weights to compute old log-probs with."""
    num_critic_only_steps: int = 0
    """Rollouts in which only the critic learns."""
    critic_lr: float | None = None
    """The critic's peak learning rate; `lr` when unset."""
    critic_lr_warmup_iters: int | None = None
    """The critic's optimizer steps of linear warm-up; the policy's warm-up when unset."""
    megatron_config_path: str | None = None
    """YAML of optimizer settings per role, actor or critic: `megatron: [{role, overrides}]`."""
    use_opd: bool = False
    """On-policy distillation from a teacher."""
    opd_type: Literal["sglang", "megatron"] | None = None
    """Where the teacher's log-probs come from: a server or a checkpoint."""
    opd_kl_coef: float = 1.0
    """Weight of the distillation term."""
    opd_teacher_load: str | None = None
    """Teacher's checkpoint."""
    opd_teacher_ckpt_step: int | None = None
    """Iteration of the teacher's checkpoint."""
    lora_rank: int = 0
    """Rank of low-rank adapters, which are then trained alone; 0: train the weights themselves."""
    lora_alpha: float = 32.0
    """Adapters count alpha / rank."""
    lora_target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """The matrices that get one, named as in Hugging Face."""

    @property
    def has_reference(self) -> bool:
        """Whether reference log-probs are needed."""
        return self.use_kl_loss or self.kl_coef != 0

    @property
    def balance_coef(self) -> float:
        """Weight of the loss that keeps experts equally busy."""
        return self.moe_aux_loss_coeff if self.moe_router_load_balancing_type != "none" else 0.0

    @property
    def has_critic(self) -> bool:
        """Whether a value model learns beside the policy."""
        return self.advantage_estimator == "ppo"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimizer"""

    optimizer: Literal["adam"] = "adam"
    """Adam with decoupled weight decay, fp32 master weights and state."""
    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the decay after warm-up."""
    lr_decay_iters: int | None = None
    """Optimizer steps until `min_lr`; those of the whole run when unset."""
    lr_warmup_iters: int = 0
    """Optimizer steps of linear warm-up."""
    lr_warmup_fraction: float | None = None
    """The same as a share of the decay steps."""
    lr_warmup_init: float = 0.0
    """Learning rate at the start of warm-up."""
    weight_decay: float = 0.01
    """Decay of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    no_check_for_nan_in_loss_and_grad: bool = False
    """Skip a step whose gradient is not finite instead of stopping the run."""
    reset_optimizer_states: bool = False
    """Start every rollout with fresh Adam moments."""
    use_stateless_adam: bool = False
    """Adam that keeps no moments between steps."""
    optimizer_cpu_offload: bool = False
    """Keep Adam's state in host memory."""
    overlap_cpu_optimizer_d2h_h2d: bool = False
    """Overlap the copies of that."""
    use_precision_aware_optimizer: bool = False
    """Keep Adam's moments in the dtypes that the next two flags say."""
    exp_avg_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the first moment, with `--use-precision-aware-optimizer`."""
    exp_avg_sq_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the second moment; bf16 does not see a change below 0.4 %: lower `adam_beta2` with it."""
    only_train_params_name_list: tuple[str, ...] = ()
    """Regular expressions: train matching parameters only."""
    freeze_params_name_list: tuple[str, ...] = ()
    """Regular expressions: do not train matching parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Batches"""

    global_batch_size: int | None = None
    """Samples per optimizer step; those of a rollout / `num_steps_per_rollout` when unset."""
    num_steps_per_rollout: int | None = None
    """Optimizer steps per rollout; from `global_batch_size` when unset, else 1."""
    micro_batch_size: int = 1
    """Samples per packed row, when batches are not dynamic."""
    use_dynamic_batch_size: bool = False
    """Fill rows up to `--max-tokens-per-gpu` instead."""
    max_tokens_per_gpu: int | None = None
    """Tokens of a row; a longer sample gets a row of its own."""
    log_probs_max_tokens_per_gpu: int | None = None
    """The same for log-prob passes; `max_tokens_per_gpu` when unset."""
    log_probs_chunk_size: int = -1
    """Rows of logits held at once; -1: chosen by size."""
    balance_data: bool = False
    """Even out work over data-parallel ranks."""
    balance_by_flops: bool = False
    """Fill rows by work instead of tokens (may exceed the token budget)."""
    data_pad_size_multiplier: int = 128
    """Rows are padded to a multiple of this many tokens (per tensor-parallel rank)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Parallelism"""

    tensor_model_parallel_size: int = 1
    """Devices that share one matrix."""
    sequence_parallel: bool = False
    """Split norms and residuals along the sequence over tensor-parallel ranks."""
    pipeline_model_parallel_size: int = 1
    """Devices that share the layers in stages."""
    decoder_first_pipeline_num_layers: int | None = None
    """Layers of the first stage, when not even."""
    decoder_last_pipeline_num_layers: int | None = None
    """Layers of the last stage, when not even."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers per virtual stage (interleaved schedule)."""
    num_virtual_stages_per_pipeline_rank: int | None = None
    """Virtual stages per rank (interleaved schedule)."""
    context_parallel_size: int = 1
    """Devices that share one sequence."""
    allgather_cp: bool = False
    """Contiguous layout of context parallelism with all-gathered keys."""
    expert_model_parallel_size: int = 1
    """Devices that share the experts."""
    expert_tensor_parallel_size: int | None = None
    """Devices that share one expert's matrices; tensor-parallel size when unset."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Compute activations again in the backward pass: whole layers, or only what SwiGLU gives
    (attention keeps no scores here)."""
    recompute_method: Literal["uniform", "block"] | None = None
    """`uniform`: every group of layers; `block`: the first ones only."""
    recompute_num_layers: int | None = None
    """Layers per group (`uniform`) or layers recomputed (`block`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """Weight update"""

    asynchronous: Literal["off", "one-step", "full"] = "off"
    """Sample while training goes on: one rollout ahead (what `train_async.py` sets), or without
    end, with new weights put under running answers."""
    update_weights_interval: int = 1
    """Rollouts between updates of the engines (asynchronous training)."""
    max_staleness: int | None = None
    """Most rollouts that were learned from between the weights that chose a token and the step that
    trains it. The update interval when unset, and one more when fully asynchronous; 0: nothing
    overlaps."""
    auto_split: bool = False
    """Say at the end of a run how its devices are best split between training and sampling, by the
    times that were measured (`tandem split` says it of any run folder)."""
    update_weight_mode: Literal["full", "delta"] = "full"
    """Send all weights, or the bytes that changed."""
    update_weight_transport: Literal["nccl", "disk"] = "nccl"
    """Carrier between processes; one process shares the tensors themselves."""
    update_weight_buffer_size: int = 512 * 2**20
    """Bytes per bucket."""
    update_weight_disk_dir: str | None = None
    """Folder that trainer and engines share."""
    update_weight_disk_keep_files: bool = False
    """Keep the folders of earlier versions."""
    update_weight_delta_encoding: Literal["xor", "overwrite"] = "xor"
    """How changed bytes are written."""
    update_weight_delta_checksum: Literal["xxh3-128", "blake3", "adler32"] = "xxh3-128"
    """Checksum of each changed tensor."""
    update_weight_local_checkpoint_dir: str | None = None
    """Folder on the engine's host that deltas are applied to."""
    custom_update_weight_post_write_path: str | None = None
    """Hook `fn(args, version_dir, rollout_engines)` after files were written."""
    release_train: bool = False
    """End the training processes while engines sample, and start them again from `--save`."""
    check_weight_update_equal: bool = False
    """Compare engine and trainer tensors after an update."""
