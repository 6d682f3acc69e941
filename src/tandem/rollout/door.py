"""The engine as a round of sampling sees it: open until enough is kept, then shut."""

import asyncio
from collections.abc import Callable

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
