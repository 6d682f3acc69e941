"""The stock router: started and told of the servers, or one that runs already."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tandem.engine.sglang.line import Line
from tandem.engine.sglang.ports import Ports
from tandem.engine.sglang.process import LoggedProcess
from tandem.engine.sglang.server import Server
from tandem.errors import EngineError

START_S, POLL_S = 60.0, 0.1
KEYED = ("consistent_hashing", "manual")
"""Policies that go by the routing key of a request; cache_aware sees the common prompt itself."""
DEFAULTS = {
    "policy": ("cache_aware",),
    "balance-abs-threshold": ("10",),
    "balance-rel-threshold": ("1.2",),
    "log-level": ("warn",),
}
"""As the dialect starts it (2.9); each gives way to the user's own."""


class StockRouter:
    """`sglang_router` at an address."""

    def __init__(self, url: str, *, policy: str, process: LoggedProcess | None = None) -> None:
        self.url, self._policy, self._process = url.rstrip("/"), policy, process

    def headers(self, group: str | None) -> dict[str, str]:
        """What keeps a group's samples together where the policy goes by a key."""
        keyed = self._policy in KEYED and group is not None
        return {"X-SMG-Routing-Key": group} if keyed and group else {}

    async def register(self, line: Line, server: Server) -> None:
        """Tells the router of a server and waits until it is taken; one that is there stays."""
        if server.url not in await self._workers(line):
            await line.call("POST", self.url + "/workers", {"url": server.url}, timeout_s=START_S)
        for _ in range(round(START_S / POLL_S)):
            if server.url in await self._workers(line):
                return
            await asyncio.sleep(POLL_S)
        raise EngineError(f"the router at {self.url} did not take {server.url}")

    async def forget(self, line: Line, server: Server) -> None:
        """Takes a server out, if it is in."""
        known = (await self._workers(line)).get(server.url)
        if known is not None:
            await line.call("DELETE", f"{self.url}/workers/{known}", timeout_s=START_S)

    async def _workers(self, line: Line) -> dict[str, str]:
        """Names of the servers that the router has, by address."""
        reply = await line.call("GET", self.url + "/workers", timeout_s=START_S)
        return {one["url"]: one["id"] for one in reply["workers"]}

    async def until_ready(self, line: Line) -> None:
        """Waits until it answers; raises EngineError with its last lines if it died."""
        for _ in range(round(START_S / POLL_S)):
            try:
                await line.call("GET", self.url + "/liveness", timeout_s=2.0)
                return
            except EngineError:
                death = None if self._process is None else self._process.death()
                if death is not None:
                    raise EngineError(f"the router did not start: {death}") from None
                await asyncio.sleep(POLL_S)
        hint = "" if self._process else "; start it, or leave --sglang-router-ip and -port out"
        raise EngineError(f"the router at {self.url} does not answer{hint}")

    def close(self) -> None:
        """Ends it if it was started here."""
        if self._process is not None:
            self._process.kill()


def start_router(
    python: str, flags: Mapping[str, tuple[str, ...]], *, timeout_s: int, log: Path
) -> StockRouter:
    """A router that was just started with the user's `--router-*` flags; it may not answer yet."""
    chosen = DEFAULTS | dict(flags)

    def words(ports: Ports) -> list[str]:
        told = [python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
        told += ["--port", str(ports[1]), "--prometheus-port", str(ports[2])]
        told += ["--request-timeout-secs", str(timeout_s)]
        # who is alive is known here, and a request is asked again under another id
        told += ["--disable-circuit-breaker", "--disable-health-check", "--disable-retries"]
        for name, values in chosen.items():
            told += [f"--{name}", *values]
        return told

    process = LoggedProcess("the router", words, log)
    process.start()
    return StockRouter(process.url, policy=chosen["policy"][0], process=process)
