"""What each rollout's optimizer steps learned from, as files of plain values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from tandem.contracts import Trainer
from tandem.rollout.dump import path_of, write
from tandem.types import Batch, Group, StepStats, Weights


class DumpingTrainer:
    """Another trainer whose batches are also written to files; implements `contracts.Trainer`.

    A file is `{"rollout_id": int, "samples": [one dictionary a trained sample]}`, in the order of
    training: `step` and `row` say where it was packed, and every column of `Batch` is there under
    its name without axes, as it was packed: entry t speaks of `targets[t]`.
    """

    def __init__(self, trainer: Trainer, template: str, *, first: int) -> None:
        """`template` is the path of the files, with `{rollout_id}` to be filled in.

        `first` is the rollout that is learned from first.
        """
        self._trainer, self._template, self._next = trainer, template, first

    def annotate(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """What the other trainer says of the groups."""
        return self._trainer.annotate(groups)

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """The other trainer's report, after the batches are written: a step may fail."""
        content = {"rollout_id": self._next, "samples": list(samples_of(steps))}
        write(content, path_of(self._template, self._next))
        self._next += 1
        return self._trainer.step_on(steps)

    def weights(self, version: int) -> Weights:
        """The other trainer's weights."""
        return self._trainer.weights(version)

    def save(
        self, root: Any, iteration: int, extra: Mapping[str, Any], *, with_optimizer: bool = True
    ) -> Any:
        """What the other trainer's `save` gives."""
        return self._trainer.save(root, iteration, extra, with_optimizer=with_optimizer)

    def finish_saves(self) -> None:
        """Waits for the other trainer's saves."""
        self._trainer.finish_saves()

    def save_hugging_face(self, folder: Any, origin: Any) -> None:
        """Has the other trainer write its policy."""
        self._trainer.save_hugging_face(folder, origin)

    def load(self, root: Any, iteration: int | None = None) -> Mapping[str, Any]:
        """What the other trainer's `load` gives."""
        return self._trainer.load(root, iteration)


def samples_of(steps: Sequence[Sequence[Batch]]) -> Iterator[dict[str, Any]]:
    """Every sample that was packed, as plain values; padding is left out."""
    names = [field.name for field in fields(Batch) if field.name.endswith("_T")]
    for step, batches in enumerate(steps):
        for row, batch in enumerate(batches):
            columns = {name.removesuffix("_T"): getattr(batch, name) for name in names}
            bounds = [bound for bound in batch.bounds_S.tolist() if bound <= batch.num_tokens]
            for start, end in pairwise(bounds):
                # a copy: a view would be saved with the whole row that it looks at
                yield {"step": step, "row": row} | {
                    name: column_T[start:end].cpu().clone()
                    for name, column_T in columns.items()
                    if column_T is not None
                }
