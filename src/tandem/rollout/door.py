"""The engine as a round of sampling sees it: open until enough is kept, held while it decides."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from tandem.contracts import Engine
from tandem.types import Completion, Ending, Request


class Door:
    """Passes requests on to the engine; shut, it answers them with ABORT and nothing new."""

    def __init__(self, engine: Engine, *, concurrency: int) -> None:
        """`concurrency`: samples that may be at work at once, from `slots`."""
        self._engine = engine
        self.slots = asyncio.Semaphore(concurrency)
        self.is_open = True
        self._num_asked = 0
        self._on_completion: Callable[[], None] | None = None

    async def ask(self, request: Request) -> Completion:
        """The completion; the request is queued before this waits for anything."""
        if not self.is_open:
            return Completion.empty(request.id, Ending.ABORT)
        self._num_asked += 1
        answer = asyncio.ensure_future(self._engine.add(request))
        if self._on_completion is not None:
            answer.add_done_callback(self._tell)
        try:
            return await answer
        finally:
            self._num_asked -= 1

    def open(self, on_completion: Callable[[], None] | None = None) -> None:
        """Lets requests through again; `on_completion` is called before the engine's next step."""
        self.is_open = True
        self._on_completion = on_completion

    async def shut(self) -> None:
        """Ends what is being sampled, with what it has written, and lets nothing new through."""
        self.is_open = False
        if self._num_asked:
            await self._engine.abort()

    @property
    def version(self) -> int:
        """Of the weights that sample now."""
        return self._engine.stats().version

    def _tell(self, answer: "asyncio.Future[Completion]") -> None:
        if self._on_completion is not None:
            self._on_completion()


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
