"""Weights that engines of the same process copy into tensors of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tandem.contracts import Engine
from tandem.sync.check import failures_of, update_all
from tandem.types import Weights


class CopiedSync:
    """Publishes to engines that go on sampling while the trainer moves its own tensors."""

    def __init__(self, engines: Sequence[Engine], *, dtype: str) -> None:
        self._engines = tuple(engines)
        self._dtype = dtype

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Seconds of the update and of its check; raises SyncError naming engines that missed it.

        They hold tensors of the trainer's names and sizes, which must have the same digests.
        """

        def failures(engine: Engine, name: str) -> list[str]:
            return failures_of(engine, name, weights, self._dtype)

        return update_all(self._engines, replace(weights, is_shared=False), failures)
