"""--rollout-data-postprocess-path examples.hooks.postprocess.drop_certain_tokens

Has the last word before training, when log-probs and advantages are there: tokens that the policy
was all but sure of are taken out of the loss.
"""

from typing import Any

SURE = -0.01
"""Log-prob above which a token teaches nothing."""


def drop_certain_tokens(args: Any, rollout_id: int, rollout_data: dict[str, Any]) -> None:
    """Changes the lists of `rollout_data` in place; each has one tensor a sample."""
    masks, log_probs = rollout_data["loss_masks"], rollout_data["rollout_log_probs"]
    rollout_data["loss_masks"] = [
        mask * (log_prob < SURE) for mask, log_prob in zip(masks, log_probs, strict=True)
    ]
