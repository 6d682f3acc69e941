"""Who judges a sample, and how long that may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Reward"""

    rm_type: str | None = None
    """Reward by name, e.g. deepscaler, math, math_verify, dapo, f1, gpqa, remote_rm, random;
    `boxed_` in front judges the last box only; `metadata.rm_type` of a prompt wins."""
    reward_key: str | None = None
    """Key of the number, when the reward is a dictionary."""
    eval_reward_key: str | None = None
    """The same in evaluation; `reward_key` when unset."""
    group_rm: bool = False
    """Judge a whole group in one call."""
    rm_url: str | None = None
    """Address of the service that `remote_rm` asks."""
    custom_rm_path: str | None = None
    """Hook `async fn(args, sample) -> reward`, or of a list of samples with `--group-rm`."""
    custom_reward_post_process_path: str | None = None
    """Hook `fn(args, samples) -> (raw, processed)` in place of group normalisation."""
    reward_workers: int = 2
    """Processes that judge; each can be killed when it hangs."""
    reward_timeout_s: float = 10.0
    """Seconds after which a verdict counts as missing."""
