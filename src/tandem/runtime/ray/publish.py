"""New weights to every engine of a fleet, and the proof that they arrived."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tandem.errors import SyncError
from tandem.runtime.ray.engines import EngineFleet
from tandem.sync.check import failures_of
from tandem.types import EngineStats, Weights


class FleetSync:
    """Publishes to all engines or none; implements `contracts.Sync`."""

    def __init__(self, engines: EngineFleet, *, dtype: str) -> None:
        self.engines = engines
        self._dtype = dtype

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Seconds of the update and of its check, and what the carrier counts.

        An engine that missed it is named and gets the weights once more; if it still does not show
        them, SyncError names it. The run stops then, so no mixed fleet ever samples.
        """
        started_s = time.perf_counter()
        self.engines.update(weights)
        updated_s = time.perf_counter()
        missed = self._missed(weights)
        if missed:
            self.engines.send_again(missed)
            missed = self._missed(weights)
        if missed:
            raise SyncError(
                f"weight update {weights.version} did not arrive as it was sent: "
                + "; ".join(missed.values())
                + ". The run stops here; resume it from its last checkpoint"
            )
        checked_s = time.perf_counter()
        return {
            "perf/update_weights_time": checked_s - started_s,
            "perf/update_weights_check_time": checked_s - updated_s,
            **self.engines.update_numbers(),
        }

    def _missed(self, weights: Weights) -> dict[str, str]:
        """What is wrong with each engine that does not show the weights, by its name."""
        missed = {}
        for name, shown in self._shown(weights).items():
            failures = failures_of(shown, name, weights, self._dtype)
            if failures:
                missed[name] = "; ".join(failures)
        return missed

    def _shown(self, weights: Weights) -> dict[str, Any]:
        """What each engine shows, by its name."""
        engines = self.engines
        count = len(engines.lines)
        digests: list[Any] = [None] * count
        canaries: list[Any] = [None] * count
        if weights.digests is not None:
            digests = engines.state_digests(as_stored=weights.is_shared)
        if weights.canary is not None:
            canaries = engines.canaries(weights.canary.tokens_T)
        parts = zip(engines.lines, engines.all_stats(), digests, canaries, strict=True)
        return {line.name: _Shown(*shown) for line, *shown in parts}


@dataclass(frozen=True, slots=True)
class _Shown:
    """What one engine said of itself, as the check asks for it."""

    held: EngineStats
    digests: Mapping[str, int]
    logprobs_T: np.ndarray

    def stats(self) -> EngineStats:
        return self.held

    def state_digest(self, *, as_stored: bool) -> Mapping[str, int]:
        return self.digests

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        return self.logprobs_T
