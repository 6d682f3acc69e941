"""One rollout ahead: the next one is sampled while this one is learned from."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from tandem.contracts import Sampler
from tandem.loop_async.staleness import staleness_metrics
from tandem.types import Rollout

AHEAD = "ahead"
"""In the sampler's state: a rollout that is sampled and was not learned from yet."""


class Ahead:
    """Another sampler, one rollout ahead of the loop; implements `contracts.Sampler`.

    `collect(step)` gives rollout `step` and begins the next one in a thread of its own, if what
    that gives is then stale by at most `max_staleness`; otherwise the next one begins when it is
    asked for, after new weights. So which version samples which rollout follows from settings and
    from nothing else. Nobody may publish or evaluate but within `settled`.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        version: Callable[[], int],
        num_rollout: int,
        max_staleness: int,
        sampling: Callable[[], AbstractContextManager[Any]] = nullcontext,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`version` is that of the weights which sample now, `sampling` what a rollout happens
        in, `stop` ends the one under way."""
        self._sampler, self._version, self._stop = sampler, version, stop
        self._num_rollout, self._max_staleness = num_rollout, max_staleness
        self._sampling = sampling
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._next: Future[Rollout] | None = None
        self._before: Mapping[str, Any] = {}  # the sampler's state before that rollout
        self._idle_since_s: float | None = None

    def collect(self, step: int) -> Rollout:
        """Rollout `step`: takes what is there, waits for what is under way, else samples it."""
        asked_s = time.perf_counter()
        if self._next is None:
            self._begin(step)
        assert self._next is not None, "a rollout has just begun"
        rollout, self._next = self._next.result(), None
        waited_s = time.perf_counter() - asked_s
        if step + 1 < self._num_rollout and step + 1 - self._version() <= self._max_staleness:
            self._begin(step + 1)
        metrics = {
            **rollout.metrics,
            "perf/trainer_idle_time": waited_s,
            **staleness_metrics(rollout.groups, step),
        }
        return replace(rollout, step=step, metrics=metrics)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Within it nothing is sampled: it begins when the rollout under way is there.

        Raises what that raised.
        """
        if self._next is not None:
            self._next.result()
        yield

    def state(self) -> Mapping[str, Any]:
        """The sampler's state, and the rollout that is ahead; one still under way is sampled again
        by who goes on from this."""
        if self._next is None:
            return self._sampler.state()
        if not self._next.done() or self._next.exception() is not None:
            return self._before
        return {**self._sampler.state(), AHEAD: self._next.result()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state, with the rollout that was ahead."""
        state = dict(state)
        rollout = state.pop(AHEAD, None)
        self._sampler.restore(state)
        if rollout is not None:
            self._next = Future()
            self._next.set_result(rollout)

    def close(self) -> None:
        """Ends the rollout under way, if the run ends before it, and the thread."""
        if self._next is not None and not self._next.done():
            self._stop()
        self._thread.shutdown()

    def _begin(self, step: int) -> None:
        self._before = self._sampler.state()
        self._next = self._thread.submit(self._sample, step)

    def _sample(self, step: int) -> Rollout:
        began_s = time.perf_counter()
        idle_s = 0.0 if self._idle_since_s is None else began_s - self._idle_since_s
        with self._sampling():
            rollout = self._sampler.collect(step)
        self._idle_since_s = time.perf_counter()
        seconds = {
            "perf/sampling_time": self._idle_since_s - began_s,
            "perf/sampler_idle_time": idle_s,
        }
        return replace(rollout, metrics={**rollout.metrics, **seconds})
