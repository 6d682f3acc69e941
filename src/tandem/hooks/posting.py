"""Requests of users' functions to the run's own HTTP address."""

from collections.abc import Mapping
from typing import Any


async def post(
    url: str, payload: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
) -> Any:
    """What the address answers to this JSON; raises RuntimeError where it refuses.

    For functions that post to `http://{args.sglang_router_ip}:{args.sglang_router_port}/generate`.
    An answer may take as long as it wants.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, json=dict(payload), headers=headers) as response,
    ):
        if response.status >= 400:
            raise RuntimeError(f"{url} answered {response.status}: {(await response.text())[:500]}")
        return await response.json()
