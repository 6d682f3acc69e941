"""--partial-rollout --buffer-filter-path examples.hooks.buffer_filter.nearly_done_first

Chooses which of the groups that were cut off go on in this rollout; what it returns it must take
out of the buffer.
"""

from typing import Any

from tandem.hooks import Sample


def nearly_done_first(
    args: Any, rollout_id: int | None, buffer: list[list[Sample]], num_groups: int
) -> list[list[Sample]]:
    """The groups that have the most tokens already."""
    buffer.sort(key=lambda group: -sum(sample.response_length for sample in group))
    chosen = buffer[:num_groups]
    del buffer[:num_groups]
    return chosen
