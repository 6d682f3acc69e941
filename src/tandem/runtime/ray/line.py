"""One engine as the driver sees it: what was asked of it and is not answered yet."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tandem.errors import EngineError
from tandem.runtime.ray.mailbox import Answer
from tandem.types import Completion, Ending, Request


@dataclass(slots=True, eq=False)
class Asked:
    """A request and who waits for it."""

    request: Request
    future: "asyncio.Future[Completion]"
    is_ended: bool = False  # an abort was sent

    def give(self, completion: Completion) -> None:
        """Hands the completion over, if anybody still waits."""
        if not self.future.done():
            self.future.set_result(completion)

    def fail(self, fault: Exception) -> None:
        """Hands a fault over, if anybody still waits."""
        if not self.future.done():
            self.future.set_exception(fault)

    def give_up(self) -> None:
        """Hands over that nothing was written."""
        self.give(
            Completion(
                id=self.request.id,
                tokens_C=np.zeros(0, np.int32),
                logprobs_C=np.zeros(0, np.float32),
                version_C=np.zeros(0, np.int32),
                ending=Ending.ABORT,
            )
        )


Collect = Callable[["Line"], Coroutine[Any, Any, None]]


class Line:
    """Sends requests to one engine in bundles and hands its answers over.

    Used on one event loop, which may rest between two uses.
    """

    def __init__(
        self, name: str, handle: Any, *, has_rank: bool, shares: bool, gives: bool
    ) -> None:
        """`has_rank`: a rank is in the same process; `shares`: the engine reads its weights;
        `gives`: it can give its weights to another, and needs nobody else's for that."""
        self.name, self.handle = name, handle
        self.has_rank, self.shares, self.gives = has_rank, shares, gives
        self.is_alive = True
        self.num_deaths = 0  # since the last weight update
        self.is_paced = False  # nothing is sent but what is fetched here
        self._asked: dict[str, Asked] = {}
        self._unsent: list[Request] = []
        self._unended: list[str] = []  # ids that the engine is to end
        self._collecting: asyncio.Task[None] | None = None

    @property
    def num_asked(self) -> int:
        """Requests that it owes an answer to."""
        return len(self._asked)

    def send(self, asked: Asked, collect: Collect) -> None:
        """Queues a request; it goes out with all others of this turn of the event loop, or with
        what is fetched."""
        loop = asyncio.get_running_loop()
        id = asked.request.id
        assert id not in self._asked, f"request {id} is being sampled already"
        self._asked[id] = asked
        asked.future.add_done_callback(lambda future: self._drop(asked, future))
        self._unsent.append(asked.request)
        if self.is_paced:
            return
        if len(self._unsent) == 1:
            loop.call_soon(self.flush)
        if self._collecting is None or self._collecting.done():
            self._collecting = loop.create_task(collect(self))

    def fetched(self) -> tuple[list[Request], list[str]]:
        """Requests that were queued since the last call, and ids to end."""
        fetched = self._unsent, self._unended
        self._unsent, self._unended = [], []
        return fetched

    def flush(self) -> None:
        """Sends what is queued, all in one call: two could overtake each other."""
        if self.is_paced or not self.is_alive:
            return
        requests, ids = self.fetched()
        if requests or ids:
            self.handle.sample.remote("ask", requests, ids)

    def end(self, ids: set[str] | None) -> list[Asked]:
        """Aborts the named requests, or all; those that it will answer with what was written."""
        ended = [one for id, one in self._asked.items() if ids is None or id in ids]
        for one in ended:
            one.is_ended = True
            self._unended.append(one.request.id)
        self.flush()
        return ended

    def deliver(self, answers: Iterable[Answer]) -> None:
        """Hands answers over to those who wait."""
        for id, answer in answers:
            asked = self._asked.pop(id, None)
            if asked is None:
                continue  # nobody waits any more
            if isinstance(answer, EngineError):
                asked.fail(answer)
            else:
                asked.give(answer)

    def bury(self) -> list[Asked]:
        """What is to be asked again, once the engine is dead; aborted requests are given up."""
        self.is_alive, self.handle = False, None
        self.fetched()
        asked, self._asked = list(self._asked.values()), {}
        for one in asked:
            if one.is_ended:
                one.give_up()
        return [one for one in asked if not one.future.done()]

    def open(self, handle: Any) -> None:
        """Goes on with a process that has an engine."""
        self.handle, self.is_alive = handle, True

    def fail(self, fault: Exception) -> None:
        """Ends every request with the fault."""
        self.fetched()
        asked, self._asked = list(self._asked.values()), {}
        for one in asked:
            one.fail(fault)

    def _drop(self, asked: Asked, future: "asyncio.Future[Completion]") -> None:
        """Ends a request whose future was cancelled; its answer is not waited for."""
        if future.cancelled() and self._asked.get(asked.request.id) is asked:
            del self._asked[asked.request.id]
            self._unended.append(asked.request.id)
            self.flush()
