"""What is written about a run, and where."""

from dataclasses import dataclass, field
from typing import Literal


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
