"""One running server and the calls that control it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tandem.engine.sglang.line import Line
from tandem.engine.sglang.wire import canary_body, read_canary, shortened
from tandem.errors import EngineError

CONTROL_S = 120.0
"""For a call that ought to take milliseconds; a hung server is dead."""
FLUSH_S = 10.0
UPDATE_S = 600.0
"""For reading weights, from a folder too."""

ALL_TAGS = ("weights", "kv_cache", "cuda_graph")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and how many tensor-parallel ranks it has."""

    url: str
    name: str
    num_ranks: int


class Server:
    """An address, and what it can be told. Every call raises EngineError."""

    def __init__(self, line: Line, url: str, *, name: str, num_ranks: int = 1) -> None:
        """`num_ranks`: of its tensor-parallel ranks, each takes its own handle of a bucket."""
        self.url, self.name, self.num_ranks = url.rstrip("/"), name, num_ranks
        self._line = line

    @property
    def address(self) -> Address:
        return Address(self.url, self.name, self.num_ranks)

    async def get(self, path: str, *, timeout_s: float = CONTROL_S) -> Any:
        """The reply to a GET."""
        return await self._line.call("GET", self.url + path, timeout_s=timeout_s)

    async def post(self, path: str, body: Any, *, timeout_s: float | None = CONTROL_S) -> Any:
        """The reply to a POST."""
        return await self._line.call("POST", self.url + path, body, timeout_s=timeout_s)

    async def is_healthy(self, timeout_s: float) -> bool:
        """Whether it answers at all; a server that loads or hangs does not."""
        try:
            await self.get("/health", timeout_s=timeout_s)
        except EngineError:
            return False
        return True

    async def model_info(self) -> dict[str, Any]:
        """Its model, and the weight version that it samples with."""
        return await self.get("/model_info")

    async def version(self) -> str:
        """The weight version as the server tells it."""
        return str((await self.model_info()).get("weight_version"))

    async def abort(self, rid: str | None = None) -> None:
        """Ends a request, or all; each is answered with what it wrote."""
        await self.post("/abort_request", {"abort_all": True} if rid is None else {"rid": rid})

    async def pause(self) -> None:
        """Stops sampling and lets nothing new begin; what still runs loses its cache."""
        await self.post("/pause_generation", {"mode": "retract"})

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self.post("/continue_generation", {"torch_empty_cache": False})

    async def flush(self) -> None:
        """Drops every cached prefix; waits for what is just ending, refused while more goes on."""
        await self.post(f"/flush_cache?timeout={FLUSH_S:g}", None)

    async def release_memory(self) -> None:
        """Gives weights, cache and graphs back to the device; what they held is lost."""
        await self.post("/release_memory_occupation", {"tags": list(ALL_TAGS)})

    async def take_memory(self, *tags: str) -> None:
        """Takes memory back: room for weights, which are garbage until they are sent again, or
        cache and graphs."""
        await self.post("/resume_memory_occupation", {"tags": list(tags)})

    async def update(self, path: str, body: Any) -> None:
        """A weight update; raises EngineError with what the server says went wrong."""
        reply = await self.post(path, body, timeout_s=UPDATE_S)
        if not (isinstance(reply, dict) and reply.get("success")):
            raise EngineError(f"{self.name} ({self.url}) refused {path}: {shortened(reply)}")

    async def set_version(self, version: int) -> None:
        """Gives its weights a version."""
        body = {"new_version": str(version), "abort_all_requests": False}
        await self.update("/update_weight_version", body)

    async def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """The log-prob of each token given those before it, `[T]`, 0 at the first."""
        reply = await self.post("/generate", canary_body(tokens_T))
        return read_canary(reply, len(tokens_T))
