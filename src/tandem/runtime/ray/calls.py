"""Waits for calls to several processes, and turns what Ray says of a fault into one of ours."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from tandem.errors import ResourceError, TandemError
from tandem.runtime.ray.watch import Watch

GRACE_S = 10.0
"""How long after a first failure its cause is waited for: a rank whose peer died fails before the
news of that death arrives."""


def gather(refs: Sequence[Any], names: Sequence[str], verb: str, watch: Watch) -> list[Any]:
    """What the calls gave, in their order; raises the fault that explains the others.

    `names` are those of the processes as `watch` knows them, for messages.
    """
    open_refs, failures = list(refs), {}
    deadline_s = float("inf")
    while open_refs and time.monotonic() < deadline_s:
        done, open_refs = ray.wait(open_refs, timeout=1.0)
        for ref in done:
            failure = failure_of(ref)
            if failure is not None:
                failures[refs.index(ref)] = failure
                deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
        if any(isinstance(failure, RayActorError) for failure in failures.values()):
            break
    if failures:
        _raise(failures, names, verb, watch)
    return ray.get(list(refs))


def failure_of(ref: Any) -> Exception | None:
    """Why a call that has ended failed; None if it did not."""
    try:
        ray.get(ref)
    except (RayActorError, RayTaskError) as error:
        return error
    return None


def _raise(
    failures: Mapping[int, Exception], names: Sequence[str], verb: str, watch: Watch
) -> None:
    """Raises for the process that died, else the fault that a user can mend, else the first."""
    for place, failure in failures.items():
        if isinstance(failure, RayActorError):
            raise ResourceError(died(names[place], verb, watch)) from failure
    causes = {place: getattr(failure, "cause", failure) for place, failure in failures.items()}
    for cause in causes.values():
        if isinstance(cause, TandemError):
            raise cause
    place, failure = next(iter(failures.items()))
    cause = causes[place]
    raise ResourceError(
        f"{watch.describe(names[place])} failed in {verb}: {type(cause).__name__}: {cause}. The "
        "run stops; resume it from its last checkpoint (--load)"
    ) from failure


def died(name: str, verb: str, watch: Watch) -> str:
    """The sentence about a process that is no more."""
    return (
        f"{watch.describe(name)} died in {verb}; the last that was heard of it: "
        f"{watch.last_heard(name)}. A kernel's log (dmesg) says whether it ran out of host memory. "
        "The run stops; resume it from its last checkpoint (--load)"
    )
