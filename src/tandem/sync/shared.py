"""Weights that engines of the same process read from the trainer's own storage."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tandem.contracts import EmbeddedEngine
from tandem.sync.check import failures_of, storage_failures, update_all
from tandem.types import Weights


class SharedSync:
    """Publishes by telling each engine the new version; nothing is copied."""

    def __init__(self, engines: Sequence[EmbeddedEngine], *, dtype: str) -> None:
        self._engines = tuple(engines)
        self._dtype = dtype

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Seconds of the update and of its check; raises SyncError naming engines that missed it.

        Digests are not compared where engines show that they read `weights.stored`.
        """

        def failures(engine: EmbeddedEngine, name: str) -> list[str]:
            if weights.stored is None:
                return failures_of(engine, name, weights, self._dtype)
            # first, while the device computes what the rest waits for
            elsewhere = storage_failures(engine, name, weights.stored)
            rest = failures_of(engine, name, replace(weights, digests=None), self._dtype)
            return elsewhere + rest

        return update_all(self._engines, weights, failures)
