"""--rollout-sample-hook-path examples.hooks.sample_hook.count_digits

Runs on every sample after it was written and before it is judged; the flag may be given again.
"""

from typing import Any

from tandem.hooks import Sample


def count_digits(args: Any, sample: Sample, *, rollout_id: int, evaluation: bool) -> None:
    """Puts the number of digits into the metadata, where a reward may look at it."""
    sample.metadata["num_digits"] = sum(letter.isdigit() for letter in sample.response)


async def remember_rollout(
    args: Any, sample: Sample, *, rollout_id: int, evaluation: bool
) -> Sample:
    """The sample that goes on; a hook may be async and may return another one."""
    sample.metadata["seen_in"] = rollout_id
    return sample
