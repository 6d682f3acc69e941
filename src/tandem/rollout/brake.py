"""Holds an engine's steps, so that what a round decides depends on them and on nothing else."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

LAPS = 6
"""Turns of the event loop within which everything that a completion or a verdict sets off has come
to rest: the sample's task, its group's task, a slot that goes from one to the next, new tasks that
ask the engine."""


class Holds(Protocol):
    """An engine whose steps can be held."""

    def hold(self) -> None: ...

    def release(self) -> None: ...


class Brake:
    """Holds the engine after every touch until all is at rest and nobody needs it held.

    A completion is noticed some turns of the event loop after the step that made it. Without a
    pause there, how many steps further the engine is by then would depend on how long it was held
    for other reasons; with it, everything is decided between two steps.
    """

    def __init__(self, engine: Holds | None, needs_hold: Callable[[], bool]) -> None:
        self._engine = engine
        self._needs_hold = needs_hold
        self._num_laps = 0
        self._since_s: float | None = None
        self.held_s = 0.0

    def touch(self) -> None:
        """Something happened: no step until it has come to rest."""
        if self._engine is None:
            return
        if self._since_s is None:
            self._since_s = time.perf_counter()
            self._engine.hold()
        is_counting, self._num_laps = self._num_laps > 0, LAPS
        if not is_counting:
            asyncio.get_running_loop().call_soon(self._lap)

    def let_go(self) -> None:
        """Ends every hold."""
        self._num_laps = 0
        if self._engine is not None and self._since_s is not None:
            self.held_s += time.perf_counter() - self._since_s
            self._since_s = None
            self._engine.release()

    def _lap(self) -> None:
        if self._num_laps > 1:
            self._num_laps -= 1
            asyncio.get_running_loop().call_soon(self._lap)
        elif self._num_laps == 1:
            self._num_laps = 0
            if not self._needs_hold():
                self.let_go()
