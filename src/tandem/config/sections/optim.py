"""Optimizer and schedule."""

from dataclasses import dataclass
from typing import Literal


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
