"""--data-source-path examples.hooks.data_source.Sums

Makes prompts instead of reading them. `save` and `load` keep its place between runs.
"""

import json
from pathlib import Path
from typing import Any

from tandem.hooks import Sample


class Sums:
    """Asks for the sums of small numbers, for ever."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.next = 0

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """So many groups of samples that hold a prompt and a label."""
        return [self.group() for _ in range(num_samples)]

    def group(self) -> list[Sample]:
        """The next group."""
        a, b = self.next % 7, self.next % 5
        self.next += 1
        prompt = [{"role": "user", "content": f"Count from {a} to {b}."}]
        return [Sample(prompt=prompt, label=str(a + b))] * self.args.n_samples_per_prompt

    def add_samples(self, groups: list[list[Sample]]) -> None:
        """Groups to be given again: the run keeps those that were cut off itself."""
        raise NotImplementedError

    def save(self, rollout_id: int) -> None:
        """Writes the place beside the checkpoints."""
        self.path(rollout_id).write_text(json.dumps({"next": self.next}))

    def load(self, rollout_id: int) -> None:
        """Goes on from the place of that rollout."""
        self.next = json.loads(self.path(rollout_id).read_text())["next"]

    def path(self, rollout_id: int) -> Path:
        """Where the place after a rollout is kept."""
        return Path(self.args.save) / f"sums_{rollout_id}.json"

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return 35
