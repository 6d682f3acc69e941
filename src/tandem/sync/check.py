"""Whether an engine samples with the weights that were sent."""

from collections.abc import Mapping

import numpy as np

from tandem.contracts import Engine
from tandem.types import Canary, Weights

CANARY_BOUND = {"float32": 1e-3, "bfloat16": 0.15}
"""Mean absolute log-prob difference that precision alone explains; other weights differ by ~1."""


def failures_of(engine: Engine, name: str, weights: Weights, dtype: str) -> list[str]:
    """What is wrong with an engine after an update, a sentence each; empty when all is well."""
    failures = []
    version = engine.stats().version
    if version != weights.version:
        failures.append(f"{name} reports weight version {version}, not {weights.version}")
    if weights.digests is not None:
        held = engine.state_digest(as_stored=weights.is_shared)
        failures += _digest_failures(name, weights.digests, held)
    if weights.canary is not None:
        failures += _canary_failures(name, weights.canary, engine, dtype)
    return failures


def _digest_failures(name: str, sent: Mapping[str, int], held: Mapping[str, int]) -> list[str]:
    wrong = [tensor for tensor, digest in sent.items() if held.get(tensor) != digest]
    if not wrong:
        return []
    return [f"{name} holds other bytes in {len(wrong)} of {len(sent)} tensors, first {wrong[0]}"]


def _canary_failures(name: str, canary: Canary, engine: Engine, dtype: str) -> list[str]:
    held_T = engine.canary(canary.tokens_T)
    difference = float(np.abs(held_T - canary.logprobs_T)[1:].mean())
    bound = CANARY_BOUND[dtype]
    if difference <= bound:  # a NaN fails this too
        return []
    return [
        f"{name} gives the canary log-probs that differ by {difference:.4f} on average "
        f"from the trainer's; {dtype} explains {bound}"
    ]
