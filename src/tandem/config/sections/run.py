"""What a run is made of: machines, model, what is kept of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Cluster and placement"""

    runtime: Literal["auto", "local", "ray"] = "auto"
    """One process (`local`) or Ray actors (`ray`); `auto`: local when one process is enough."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; `auto`: cuda when the machine has one, else the CPU."""
    actor_num_nodes: int = 1
    """Hosts that train."""
    actor_num_gpus_per_node: int | None = None
    """Training processes per host, one device each; 1 when unset."""
    rollout_num_gpus: int | None = None
    """Devices that sample, in all; those of the trainer when colocated or in one process."""
    rollout_num_gpus_per_engine: int = 1
    """Devices per inference engine."""
    num_gpus_per_node: int | None = None
    """Devices of a host, for launch scripts that say it; Ray counts them itself."""
    colocate: bool = False
    """Training and sampling share devices; turns both offloads on."""
    offload: bool = False
    """Short for `--offload-train --offload-rollout`."""
    offload_train: bool | None = None
    """The optimizer's state waits in host memory while engines sample; where nothing is said, on a
    GPU that both share and if caches were too small beside it."""
    offload_rollout: bool | None = None
    """The engines give their memory back while the trainer learns; on when colocated."""
    distributed_backend: Literal["nccl", "gloo"] = "nccl"
    """Backend of torch.distributed; the CPU always uses gloo."""
    distributed_timeout_minutes: int = 10
    """Minutes after which a collective that does not finish stops the run."""
    train_env_vars: Mapping[str, str] = field(default_factory=dict)
    """Environment of the training processes, as JSON."""
    heartbeat_timeout: float = 60.0
    """Seconds without any progress within which a process is named, with what it waits for and the
    stacks of all."""
    use_fault_tolerance: bool = False
    """Also restart an engine on its own devices that lives and does not move; one that died always
    is."""
    rollout_health_check_interval: float = 30.0
    """Seconds between two health checks of an engine."""
    rollout_health_check_timeout: float = 30.0
    """Seconds after which an engine that does not answer counts as dead."""
    rollout_health_check_first_wait: float = 0.0
    """Seconds before the first health check."""

    @property
    def num_trainers(self) -> int:
        """Training processes in all."""
        return self.actor_num_nodes * (self.actor_num_gpus_per_node or 1)

    @property
    def engines_cover_ranks(self) -> bool:
        """Whether engines of several devices, if on those that train, take all of them."""
        size = self.rollout_num_gpus_per_engine
        return size == 1 or not (
            self.num_trainers % size or (self.rollout_num_gpus or 0) < self.num_trainers
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Model"""

    hf_checkpoint: str | None = None
    """Hugging Face folder: shapes, tokenizer, chat template and first weights. Required."""
    model_name: str | None = None
    """The dialect's name of the family; the checkpoint's `model_type` decides here."""
    init: Literal["checkpoint", "random"] = "checkpoint"
    """First weights: the checkpoint's, or random ones by `--seed` (for benchmarks)."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of compute; master weights are fp32. `auto`: bf16 on cuda, fp32 on the CPU."""
    attention_backend: Literal["auto", "flash"] = "auto"
    """Attention kernels; both take the fastest that runs here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints"""

    load: str | None = None
    """Folder to resume from; while it is empty, the run starts from `--ref-load`."""
    ckpt_step: int | None = None
    """Iteration to load; the latest when unset."""
    ref_load: str | None = None
    """Reference model and first weights; `hf_checkpoint` when unset."""
    ref_ckpt_step: int | None = None
    """Iteration of `--ref-load`; the latest when unset."""
    save: str | None = None
    """Folder to save to."""
    save_interval: int | None = None
    """Rollouts between saves, the last one included; only a stopped run is saved when unset."""
    async_save: bool = False
    """Write while training goes on."""
    save_hf: str | None = None
    """Also save in Hugging Face form, to this path with `{rollout_id}` filled in."""
    no_save_optim: bool = False
    """Do not save the optimizer."""
    no_save_rng: bool = False
    """Do not save random state."""
    no_load_optim: bool = False
    """Do not load the optimizer."""
    no_load_rng: bool = False
    """Do not load random state."""
    finetune: bool = False
    """Load weights only and start at rollout 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveConfig:
    """Observation"""

    run_dir: str | None = None
    """Folder of metrics, samples and report; `--save` when set, else under `runs/`."""
    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """Live table, plain lines, or nothing; `auto`: live in a terminal."""
    log_passrate: bool = False
    """Report pass@k of training groups."""
    log_multi_turn: bool = False
    """Report turns of multi-turn samples."""
    log_correct_samples: bool = False
    """Report lengths of correct samples separately."""
    log_reward_category: str | None = None
    """Key of dictionary rewards that is counted by value."""
    use_tensorboard: bool = False
    """Write TensorBoard events too."""
    tb_project_name: str | None = None
    """First folder of TensorBoard events."""
    tb_experiment_name: str | None = None
    """Second folder of TensorBoard events."""
    use_wandb: bool = False
    """Report to Weights & Biases too."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    """Mode of Weights & Biases."""
    wandb_dir: str | None = None
    """Folder for its files."""
    wandb_key: str | None = field(default=None, metadata={"secret": True})
    """Its key; better given as WANDB_API_KEY in the environment."""
    wandb_host: str | None = None
    """Address of its server."""
    wandb_team: str | None = None
    """Entity that owns the run."""
    wandb_group: str | None = None
    """Group of the run."""
    wandb_project: str | None = None
    """Project of the run."""
    wandb_run_id: str | None = None
    """Run to continue."""
    disable_wandb_random_suffix: bool = False
    """Use the group's name as it is."""
    wandb_always_use_train_step: bool = False
    """Optimizer steps as the axis instead of rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Debugging"""

    seed: int = 1234
    """Seed of everything that is not the prompt order or sampling."""
    custom_config_path: str | None = None
    """YAML file of settings that win over the command line; names under `custom:` are yours."""
    debug_rollout_only: bool = False
    """Sample and judge, but do not train."""
    debug_train_only: bool = False
    """Train, but start no engine."""
    save_debug_rollout_data: str | None = None
    """Write every rollout to this path, with `{rollout_id}` filled in."""
    load_debug_rollout_data: str | None = None
    """Train on rollouts read from this path; starts no engine."""
    load_debug_rollout_data_subsample: float | None = None
    """Share of it to read."""
    load_forge_rollout_data: str | None = None
    """Replay a rollout file while engines still get their weights."""
    save_debug_train_data: str | None = None
    """Write every rollout's training data to this path."""
    dump_details: str | None = None
    """Folder for both dumps."""
    ci_test: bool = False
    """Check the run's invariants and stop at the first that fails."""
    ci_disable_kl_checker: bool = False
    """Leave KL out of those checks."""
    ci_train_rollout_logprob_abs_diff_threshold: float = 0.1
    """Largest difference of trainer and engine log-probs in those checks."""
    ci_save_grad_norm: str | None = None
    """Write gradient norms to this path, with `{role}`, `{rollout_id}`, `{step_id}` filled in."""
    ci_load_grad_norm: str | None = None
    """Compare gradient norms with those at this path."""
