"""What is read at the start and written on the way."""

from dataclasses import dataclass


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
