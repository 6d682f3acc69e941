"""Weights that engines of the same process read from the trainer's own storage."""

import time
from collections.abc import Mapping, Sequence

from tandem.contracts import Engine
from tandem.errors import SyncError
from tandem.sync.check import failures_of
from tandem.types import Weights


class SharedSync:
    """Publishes by telling each engine the new version; nothing is copied."""

    def __init__(self, engines: Sequence[Engine], *, dtype: str) -> None:
        self._engines = tuple(engines)
        self._dtype = dtype

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Seconds of the update and of its check; raises SyncError naming engines that missed it.

        All engines or none: after the error the run stops, so no mixed fleet ever samples.
        """
        started_s = time.perf_counter()
        for engine in self._engines:
            engine.update(weights)
        updated_s = time.perf_counter()
        failures = [
            failure
            for place, engine in enumerate(self._engines)
            for failure in failures_of(engine, f"engine {place}", weights, self._dtype)
        ]
        if failures:
            raise SyncError(
                f"weight update {weights.version} did not arrive as it was sent: "
                + "; ".join(failures)
                + ". The run stops here; resume it from its last checkpoint"
            )
        checked_s = time.perf_counter()
        return {
            "perf/update_weights_time": checked_s - started_s,
            "perf/update_weights_check_time": checked_s - updated_s,
        }
