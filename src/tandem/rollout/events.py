"""The event loop that sampling, hooks and rewards share, and how a run is asked to end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from tandem.errors import Stopped

Result = TypeVar("Result")


class Runner(Protocol):
    """`asyncio.Runner`, or what runs coroutines elsewhere."""

    def run(self, work: Coroutine[Any, Any, Any], /) -> Any: ...

    def get_loop(self) -> asyncio.AbstractEventLoop: ...

    def close(self) -> None: ...


class EventLoop:
    """Runs one coroutine at a time on a loop that outlives it, until somebody asks to stop."""

    def __init__(self, runner: Runner | None = None) -> None:
        self.runner = runner or asyncio.Runner()
        self._task: asyncio.Task[Any] | None = None
        self._is_stopping = False
        self._closings: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; raises Stopped when a stop was asked for before its end."""
        if self._is_stopping:
            work.close()
            raise Stopped
        results: list[Result] = []
        try:
            self.runner.run(self._watched(work, results))
        except asyncio.CancelledError:
            if self._is_stopping:
                raise Stopped from None
            raise
        return results[0]

    def stop(self) -> None:
        """Ends the work under way at its next pause, and refuses more; for signal handlers."""
        self._is_stopping = True
        if self._task is not None:
            self.runner.get_loop().call_soon_threadsafe(self._task.cancel)

    def at_close(self, closing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Has this run on the loop before it closes, even if a stop was asked for."""
        self._closings.append(closing)

    def close(self) -> None:
        """Runs what was left for the end, cancels the rest and closes the loop."""
        while self._closings:
            self.runner.run(self._closings.pop()())
        self.runner.close()

    async def _watched(self, work: Coroutine[Any, Any, Result], results: "list[Result]") -> None:
        self._task = asyncio.current_task()
        try:
            # not as the task's result: the runner's way with SIGINT makes a text of that, which
            # took half a minute for the arrays of four thousand samples
            results.append(await work)
        finally:
            self._task = None
