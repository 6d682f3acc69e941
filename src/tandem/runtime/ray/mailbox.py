"""An engine whose requests come and completions go in bundles, so that few calls carry many."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from tandem.contracts import Engine
from tandem.errors import EngineError
from tandem.types import Completion, Request

Answer = tuple[str, Completion | EngineError]
"""A request's id, and what came of it."""

Stretch = list[tuple[int, list[Answer]]]
"""What was answered after each of some steps, by their number from 1; 0: before the first."""


class Mailbox:
    """Passes requests to an engine on the running event loop and keeps answers until asked."""

    def __init__(self, engine: Engine, on_fault: Callable[[], None] = lambda: None) -> None:
        """`on_fault` is called where a request fails by a fault of the engine's own."""
        self._engine, self._on_fault = engine, on_fault
        self._answers: list[Answer] = []
        self._has_answers = asyncio.Event()

    def ask(self, requests: Sequence[Request]) -> None:
        """Queues the requests, in their order, before this returns."""
        for request in requests:
            try:
                future = asyncio.ensure_future(self._engine.add(request))
            except EngineError as error:
                self._keep(request.id, error)
                continue
            future.add_done_callback(partial(self._keep_done, request.id))

    async def take(self) -> list[Answer]:
        """What has been answered since the last call; waits for one; woken by a completion."""
        await self._has_answers.wait()
        answers, self._answers = self._answers, []
        self._has_answers.clear()
        return answers

    def _keep_done(self, id: str, done: "asyncio.Future[Completion]") -> None:
        if done.cancelled():
            return  # the loop is closing
        failure = done.exception()
        if failure is None:
            self._keep(id, done.result())
        else:
            if failure.__cause__ is not None:
                self._on_fault()
            self._keep(id, EngineError(str(failure)))

    def _keep(self, id: str, answer: Completion | EngineError) -> None:
        self._answers.append((id, answer))
        self._has_answers.set()
