"""The event loop and the connections over which all servers are spoken to."""

import asyncio
import json
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp

from tandem.engine.sglang.wire import Malformed, shortened
from tandem.errors import EngineError

Result = TypeVar("Result")
CONNECT_S = 10.0


class Lost(EngineError):
    """No whole answer came: the same may be asked again."""


class Busy(EngineError):
    """The server cannot take it now (503, 429): the same may be asked later."""


class Line:
    """One thread with an event loop and an HTTP session.

    The loop of a run only turns while it samples, and a weight update blocks it; servers are
    spoken to at both times, so their connections live on a loop of their own.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="sglang-line", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self.run(_open_session())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine gives, from any other thread."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """A future of what the coroutine gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def call(
        self,
        method: str,
        url: str,
        body: Any = None,
        *,
        timeout_s: float | None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The reply as JSON, or as text where it is none; raises Lost, Busy or EngineError."""
        limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        try:
            async with self._session.request(
                method, url, json=body, timeout=limit, headers=headers
            ) as reply:
                status, kind, text = reply.status, reply.content_type, await reply.text()
        except TimeoutError as error:
            raise Lost(f"{method} {url}: no answer in time ({timeout_s} s)") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(f"{method} {url}: {type(error).__name__}: {error}") from error
        if status >= 400:
            kind_of = Busy if status in (429, 502, 503, 504) else Lost if status == 500 else None
            raise (kind_of or EngineError)(f"{method} {url}: HTTP {status}: {shortened(text)}")
        if kind != "application/json":
            return text
        try:
            return json.loads(text)
        except ValueError as error:
            raise Malformed(f"{method} {url}: this is no JSON: {shortened(text)}") from error

    def close(self) -> None:
        """Ends what is under way and the thread; nothing if that was done."""
        if self.loop.is_closed():
            return
        self.run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


async def _open_session() -> aiohttp.ClientSession:
    # a server closes idle connections when it likes, and a request on such a one is lost; one
    # connection a request costs nothing beside sampling
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, trust_env=False)
