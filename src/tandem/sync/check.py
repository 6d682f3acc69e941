"""Whether an engine samples with the weights that were sent."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from tandem.contracts import EmbeddedEngine, Engine
from tandem.errors import SyncError
from tandem.types import Canary, Weights

CANARY_BOUND = {"float32": 1e-3, "bfloat16": 0.15}
"""Mean absolute log-prob difference that precision alone explains; other weights differ by ~1."""

AnEngine = TypeVar("AnEngine", bound=Engine)


def update_all(
    engines: Sequence[AnEngine], weights: Weights, failures: Callable[[AnEngine, str], list[str]]
) -> Mapping[str, float]:
    """Seconds of an update of engines of this process, and of its check.

    All engines or none: after the SyncError, which names those that missed it, the run stops, so
    no mixed fleet ever samples.
    """
    started_s = time.perf_counter()
    for engine in engines:
        engine.update(weights)
    updated_s = time.perf_counter()
    found = [
        failure
        for number, engine in enumerate(engines)
        for failure in failures(engine, f"engine {number}")
    ]
    if found:
        raise SyncError(
            f"weight update {weights.version} did not arrive as it was sent: "
            + "; ".join(found)
            + ". The run stops here; resume it from its last checkpoint"
        )
    checked_s = time.perf_counter()
    return {
        "perf/update_weights_time": checked_s - started_s,
        "perf/update_weights_check_time": checked_s - updated_s,
    }


def failures_of(engine: Engine, name: str, weights: Weights, dtype: str) -> list[str]:
    """What is wrong with an engine after an update, a sentence each; empty when all is well.

    All is asked for before anything is read, so a device is waited for once.
    """
    digests, canary = weights.digests, weights.canary
    held = {} if digests is None else engine.state_digest(as_stored=weights.is_shared)
    logprobs_T = None if canary is None else engine.canary(canary.tokens_T)
    failures = []
    version = engine.stats().version
    if version != weights.version:
        failures.append(f"{name} reports weight version {version}, not {weights.version}")
    if digests is not None:
        failures += _digest_failures(name, digests, held)
    if canary is not None and logprobs_T is not None:
        failures += _canary_failures(name, canary, logprobs_T, dtype)
    return failures


def storage_failures(engine: EmbeddedEngine, name: str, stored: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with an engine that is to read these very tensors; empty when it does.

    Then their digests are its digests: nothing would be learnt from reading the bytes again.
    """
    held = engine.tensors()
    wrong = [
        tensor
        for tensor in dict.fromkeys([*stored, *held])
        if tensor not in held
        or tensor not in stored
        or _place(held[tensor]) != _place(stored[tensor])
    ]
    if not wrong:
        return []
    return [
        f"{name} samples with storage that is not the trainer's in {len(wrong)} of {len(stored)} "
        f"tensors, first {wrong[0]}"
    ]


def of_ranks(digests: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The digests of the parts of all ranks, which are given in the order of the ranks."""
    return {
        f"{name} of rank {rank}": digest
        for rank, own in enumerate(digests)
        for name, digest in own.items()
    }


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor's numbers lie, and how they are read."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _digest_failures(name: str, sent: Mapping[str, int], held: Mapping[str, int]) -> list[str]:
    wrong = [tensor for tensor, digest in sent.items() if held.get(tensor) != digest]
    if not wrong:
        return []
    return [f"{name} holds other bytes in {len(wrong)} of {len(sent)} tensors, first {wrong[0]}"]


def _canary_failures(name: str, canary: Canary, held_T: np.ndarray, dtype: str) -> list[str]:
    difference = float(np.abs(held_T - canary.logprobs_T)[1:].mean())
    bound = CANARY_BOUND[dtype]
    if difference <= bound:  # a NaN fails this too
        return []
    return [
        f"{name} gives the canary log-probs that differ by {difference:.4f} on average "
        f"from the trainer's; {dtype} explains {bound}"
    ]
