"""The `remote_rm` reward: a service that is asked over HTTP."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from tandem.rewards.grade import Verdict

NUM_ATTEMPTS = 10
LONGEST_PAUSE_S = 30.0
REQUEST_LIMIT_S = 120.0
MAX_CONNECTIONS = 64

Pause = Callable[[float], Awaitable[None]]


class RemoteReward:
    """Asks `url`, with at most 64 requests at once; belongs to one event loop."""

    def __init__(self, url: str, *, pause: Pause = asyncio.sleep) -> None:
        self._url = url
        self._pause = pause
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def judge(self, *, prompt: Any, response: str, label: Any) -> Verdict:
        """The JSON that the service answers with.

        Ten attempts, with growing pauses between them; no verdict after the last.
        """
        import aiohttp

        payload = {"prompt": prompt, "response": response, "label": label}
        fault: Exception | None = None
        for attempt in range(NUM_ATTEMPTS):
            if attempt > 0:
                # the random part keeps a whole batch from coming back at the same moment
                await self._pause(min(2.0 ** (attempt - 1), LONGEST_PAUSE_S) + random.random())
            try:
                async with self._slots:
                    return Verdict(value=await self._ask(payload))
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                fault = error
        reason = f"{type(fault).__name__}: {fault}"
        return Verdict(error=f"{self._url} gave no verdict in {NUM_ATTEMPTS} attempts ({reason})")

    async def _ask(self, payload: dict[str, Any]) -> Any:
        import aiohttp

        limit = aiohttp.ClientTimeout(total=REQUEST_LIMIT_S)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.post(self._url, json=payload) as reply,
        ):
            reply.raise_for_status()
            return await reply.json(content_type=None)
