"""--dynamic-sampling-filter-path examples.hooks.dynamic_filter.not_all_alike

Decides on each judged group whether it is trained on; dropped groups are replaced by others.
"""

from typing import Any

from tandem.hooks import DynamicFilterOutput, Sample


def not_all_alike(args: Any, group: list[Sample]) -> DynamicFilterOutput:
    """Drops groups in which all rewards are equal, and says which."""
    rewards = {sample.get_reward_value(args) for sample in group}
    if len(rewards) > 1:
        return DynamicFilterOutput(keep=True)
    return DynamicFilterOutput(keep=False, reason=f"all_{rewards.pop()}")
