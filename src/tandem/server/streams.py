"""Server-sent events, and answers that grow side by side."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web

from tandem.errors import TandemError
from tandem.server.desk import Ask, Desk, is_last
from tandem.server.faults import Refusal, error_body
from tandem.types import Completion

Growth = tuple[int, Completion, bool]
"""Place of an answer, what it has so far, and whether that is all."""


async def growths(
    desk: Desk, asks: Sequence[Ask], *, interval: int
) -> AsyncGenerator[Growth, None]:
    """The answers as they grow, in the order in which pieces come; each one's last is marked."""
    queue: asyncio.Queue[Growth | BaseException] = asyncio.Queue()

    async def one(place: int, ask: Ask) -> None:
        is_over = False
        try:
            async with aclosing(desk.pieces(ask, interval=interval)) as pieces:
                async for piece in pieces:
                    is_over = is_last(ask, piece)
                    queue.put_nowait((place, piece, is_over))
            if not is_over:  # the engine had no room for what was asked
                queue.put_nowait((place, piece, True))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(one(place, ask)) for place, ask in enumerate(asks)]
    num_open = len(tasks)
    try:
        while num_open:
            growth = await queue.get()
            if isinstance(growth, BaseException):
                raise growth
            num_open -= growth[2]
            yield growth
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def send_events(
    request: web.Request, events: AsyncGenerator[Any, None]
) -> web.StreamResponse:
    """Sends each value as one event, then `[DONE]`; a fault on the way is an event too."""
    async with aclosing(events):
        # the first event decides the status: what is refused is refused, not streamed
        first = await anext(events)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        try:
            await _send(response, first)
            async for value in events:
                await _send(response, value)
        except Refusal as refusal:
            await _send(response, error_body(refusal))
        except TandemError as error:
            await _send(response, error_body(Refusal(str(error), status=503)))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, value: Any) -> None:
    await response.write(f"data: {json.dumps(value)}\n\n".encode())
