"""New weights to every engine of a fleet, and the proof that they arrived."""

import time
from collections.abc import Mapping
from dataclasses import replace

from tandem.errors import SyncError
from tandem.runtime.ray.engines import EngineFleet
from tandem.runtime.ray.line import Line
from tandem.sync.check import failures_of
from tandem.types import Weights


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

        def as_stored(line: Line) -> bool | None:
            sent = _sent_to(line, weights)
            return None if sent.digests is None else sent.is_shared

        tokens_T = None if weights.canary is None else weights.canary.tokens_T
        missed = {}
        shown = self.engines.shown(as_stored, tokens_T)
        for line, one in zip(self.engines.lines, shown, strict=True):
            failures = failures_of(one, line.name, _sent_to(line, weights), self._dtype)
            if failures:
                missed[line.name] = "; ".join(failures)
        return missed


def _sent_to(line: Line, weights: Weights) -> Weights:
    """The weights with the proofs that this engine can give without gathering anything, if there
    are such."""
    if weights.parts is None or not line.shares:
        return weights
    return replace(weights, is_shared=True, digests=weights.parts)
