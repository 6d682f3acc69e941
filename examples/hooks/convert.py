"""--custom-convert-samples-to-train-data-path examples.hooks.convert.shorter_is_better

Sees all judged samples of a rollout, and says what is trained on: here the rewards are compared
within each group, short answers count a little more, and prompts that all solve are left out.
"""

from statistics import fmean
from typing import Any

from tandem.hooks import Sample


def shorter_is_better(args: Any, samples: list[Sample]) -> dict[str, list[Any]]:
    """The training data, a list with one entry a sample under each key."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group_index, []).append(sample)
    kept = [
        (sample, score(args, sample) - fmean(score(args, other) for other in group))
        for group in groups.values()
        if not all(sample.reward == 1 for sample in group)
        for sample in group
    ]
    return {
        "tokens": [sample.tokens for sample, _ in kept],
        "response_lengths": [sample.response_length for sample, _ in kept],
        "rewards": [reward for _, reward in kept],
        "raw_reward": [sample.get_reward_value(args) for sample, _ in kept],
        "truncated": [int(sample.status == Sample.Status.TRUNCATED) for sample, _ in kept],
        "sample_indices": [sample.index for sample, _ in kept],
        "loss_masks": [sample.loss_mask for sample, _ in kept],
        "rollout_log_probs": [sample.rollout_log_probs for sample, _ in kept],
    }


def score(args: Any, sample: Sample) -> float:
    """The reward, and up to a tenth more for a short answer."""
    return sample.get_reward_value(args) + 0.1 / (1 + sample.response_length)
