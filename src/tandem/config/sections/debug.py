"""Seeds, dumps and self-tests."""

from dataclasses import dataclass


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
