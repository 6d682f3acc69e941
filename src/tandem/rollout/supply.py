"""Where a round's groups come from: what was cut off before, then fresh prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tandem.contracts import Source
from tandem.errors import CheckpointError
from tandem.rollout.groups import fresh_group
from tandem.types import Group

SOURCE, LEFTOVERS = "source", "leftovers"
"""Keys of the sampler's state; leftovers are groups as they are, to be encoded by who saves."""

Choose = Callable[[list[Group], int], list[Group]]
"""Takes at most so many groups out of the list and gives them (`--buffer-filter-path`)."""


def first_in(buffer: list[Group], count: int) -> list[Group]:
    """The groups that have waited longest."""
    chosen = buffer[:count]
    del buffer[:count]
    return chosen


class Supply:
    """The groups to sample next, and those that wait to go on."""

    def __init__(self, source: Source, num_samples: int, choose: Choose = first_in) -> None:
        self._source = source
        self._num_samples = num_samples
        self._choose = choose
        self._leftovers: list[Group] = []

    def __len__(self) -> int:
        """Groups that wait to go on."""
        return len(self._leftovers)

    def take(self, count: int) -> list[Group]:
        """`count` groups: those that wait first, then fresh ones."""
        groups = self._choose(self._leftovers, count) if self._leftovers else []
        missing = count - len(groups)
        fresh = self._source.take(missing) if missing > 0 else ()
        return [*groups, *(fresh_group(prompt, self._num_samples) for prompt in fresh)]

    def put_back(self, groups: Sequence[Group]) -> None:
        """Lets groups wait, behind those that wait already."""
        self._leftovers.extend(groups)

    def state(self) -> Mapping[str, Any]:
        """The source's place and the groups that wait, as they are now."""
        return {SOURCE: self._source.state(), LEFTOVERS: tuple(self._leftovers)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state.

        Raises DataError when the data set changed, CheckpointError when the groups that wait were
        begun with another number of samples.
        """
        self._source.restore(state[SOURCE])
        self._leftovers = list(state.get(LEFTOVERS, ()))
        for group in self._leftovers:
            if len({sample.rollout for sample in group.samples}) != self._num_samples:
                raise CheckpointError(
                    f"prompt {group.prompt.index} waits in the checkpoint with "
                    f"{len(group.samples)} samples, and --n-samples-per-prompt is "
                    f"{self._num_samples} now; set it as it was"
                )
