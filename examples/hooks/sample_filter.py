"""--rollout-sample-filter-path examples.hooks.sample_filter.leave_out_the_longest

Sees the groups that are kept, and may mark samples that are not to be trained. Their rewards count
in their group all the same.
"""

from typing import Any

from tandem.hooks import Sample


def leave_out_the_longest(args: Any, groups: list[list[Sample]]) -> None:
    """Marks the longest answer of every group."""
    for group in groups:
        longest = max(group, key=lambda sample: sample.response_length)
        longest.remove_sample = True
        longest.metadata["left_out"] = True
