"""All servers of an engine: their weights, their memory, and what happens when one dies."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tandem.engine.sglang.line import Line
from tandem.engine.sglang.members import Balance, Gate, Member
from tandem.engine.sglang.server import ALL_TAGS, Server
from tandem.errors import EngineError, SyncError, TandemError
from tandem.types import EngineStats, Weights

log = logging.getLogger(__name__)

WATCH_S = 0.25
START_S = 600.0
"""A server that is not ready by then is given up: loading and graphs of large models take long."""
MAX_RESTARTS = 3
MAX_STARTS, PORT_TAKEN = 3, "address already in use"
"""A program that does not know of our claims may take a port; then others are tried."""
PROBE_S = 5.0


def _no_check() -> None:
    """For whoever looks at the weights afterwards."""


class Carrier(Protocol):
    """Brings tensors into servers that are paused; all of them get all."""

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError."""

    def close(self) -> None: ...


class Router(Protocol):
    """A process that spreads requests over the servers it is told of."""

    url: str

    def headers(self, group: str | None) -> dict[str, str]: ...

    async def until_ready(self, line: Line) -> None: ...

    async def register(self, line: Line, server: Server) -> None: ...

    async def forget(self, line: Line, server: Server) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How servers are asked whether they live, beside looking at their processes."""

    interval_s: float
    timeout_s: float
    first_wait_s: float


class Witness:
    """One server as a check of weights sees it."""

    def __init__(self, fleet: "Fleet", member: Member) -> None:
        self._fleet, self._member = fleet, member
        self.name = member.name

    def stats(self) -> EngineStats:
        """Its weight version, asked of the server itself; -1 when it names none of ours."""
        told = self._fleet.line.run(self._member.server.version())
        is_number = told.lstrip("-").isdigit()
        return EngineStats(
            version=int(told) if is_number else -1,
            num_running=0,
            num_waiting=0,
            num_cache_blocks=0,
            num_free_blocks=0,
            num_generated_tokens=0,
            num_prefill_tokens=0,
            num_cached_tokens=0,
        )

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """Log-probs of a fixed sequence by this server, `[T]`, 0 at the first."""
        return self._fleet.line.run(self._member.server.canary(tokens_T))


class Fleet:
    """The servers of one engine.

    `update`, `sleep`, `wake` and `close` are for other threads; they block. Coroutines and the
    rest run on the line. A member may sample when it is up and its weights have the version of the
    fleet.
    """

    def __init__(
        self,
        line: Line,
        members: Sequence[Member],
        carrier: Carrier,
        *,
        router: Router | None = None,
        health: Health | None = None,
        can_sleep: bool = False,
    ) -> None:
        """`can_sleep`: the servers can give memory back (they were started with a memory saver)."""
        self.line, self.members, self._carrier = line, tuple(members), carrier
        self._router, self._health, self._can_sleep = router, health, can_sleep
        self.balance = Balance(self.members)
        self.version = 0
        self._again: Callable[[], Weights] | None = None
        self._released: set[str] = set()
        self._failure: TandemError | None = None
        self._cut: Callable[[], Awaitable[None]] = _nothing
        self._errands: set[asyncio.Task[None]] = set()
        self.gate, self._updating = line.run(_gate_and_lock())
        self._tasks = [line.start(self._watch(member)) for member in self.members]
        if health is not None:
            self._tasks.append(line.start(self._probe(health)))

    # --- where requests go

    def on_cut(self, cut: Callable[[], Awaitable[None]]) -> None:
        """`cut()` has every request at work answered with what it wrote, before an update."""
        self._cut = cut

    def ready(self) -> list[Member]:
        """The members that may sample now."""
        return [
            one
            for one in self.members
            if one.is_up and one.is_listed and one.version == self.version
        ]

    def may_sample(self) -> bool:
        """Whether a request may go out; raises what ended the engine."""
        if self._failure is not None:
            raise self._failure
        return self.gate.is_open and bool(self.ready())

    def door_of(self, member: Member) -> str:
        """The address that takes requests meant for a member: the router's, where there is one."""
        return member.server.url if self._router is None else self._router.url

    def headers(self, group: str | None) -> dict[str, str]:
        """What a request of this group carries so that a router keeps the group together."""
        return {} if self._router is None else self._router.headers(group)

    async def end(self, requests: Iterable[tuple[Member | None, str | None]], *, is_all: bool):
        """Tells servers to end requests; one that cannot be told will have lost them anyway."""
        chosen = list(requests)
        if self._router is not None:  # it alone knows which server has which
            orders = [(member, rid) for member in self.members for _, rid in chosen]
        else:
            orders = [(member, rid) for member, rid in chosen if member is not None]
        if is_all:
            orders = [(member, None) for member in dict.fromkeys(member for member, _ in orders)]
        await asyncio.gather(
            *(member.server.abort(rid) for member, rid in orders), return_exceptions=True
        )

    def forsake(self, member: Member, rid: str) -> None:
        """Ends a request that nobody waits for, some time soon."""
        task = asyncio.get_running_loop().create_task(self.end([(member, rid)], is_all=False))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def until_up(self) -> None:
        """Waits until every server answers; raises EngineError with the last lines of one that
        ended."""
        self.line.run(self._all_up())

    # --- weights

    def witnesses(self) -> list[Witness]:
        """Every server, to be checked after an update."""
        return [Witness(self, member) for member in self.members]

    def remember(self, again: Callable[[], Weights] | None) -> None:
        """`again()` gives the weights of the last update once more, for a server that restarts."""
        self._again = again

    def update(self, weights: Weights, check: Callable[[], None] = _no_check) -> None:
        """Gives all servers new weights; requests at work are cut off and go on after it.

        `check()` may raise when the servers have them, before anything is sampled. Raises
        SyncError; then no server samples any more.
        """
        self.line.run(self._updating.acquire())
        try:
            self.line.run(self._prepare())
            self._carrier.send([member.server for member in self.members], weights)
            self.line.run(self._finish(self.members, weights.version))
            check()
            self.line.run(self.gate.change(is_open=True))
        except TandemError as error:
            failure = SyncError(
                f"weight update {weights.version} failed: {error}. No server samples any more; "
                "resume the run from its last checkpoint"
            )
            self.line.run(self._fail(failure))
            raise failure from error
        finally:
            self.line.run(self._unlock())

    async def _prepare(self) -> None:
        await self.gate.change(is_open=False)
        await self._cut()
        await self._all_up()
        await self._take_memory("weights")
        await self._each(self._quieten)

    async def _quieten(self, member: Member) -> None:
        """Pauses a server with nothing at work in it, so that its cache can be dropped."""
        if not self._released:
            await member.server.abort()  # requests of others: hooks may ask servers themselves
        await member.server.pause()

    async def _finish(self, members: Sequence[Member], version: int) -> None:
        await self._take_memory("kv_cache", "cuda_graph")
        await self._each(lambda member: _take_over(member, version), members)
        self.version = version

    async def _fail(self, failure: TandemError) -> None:
        self._failure = failure
        await self.gate.change()

    async def _unlock(self) -> None:
        self._updating.release()

    async def _all_up(self) -> None:
        await self.gate.until(lambda: self._failure or all(one.is_up for one in self.members))
        if self._failure is not None:
            raise self._failure

    async def _each(self, act, members: Sequence[Member] | None = None) -> None:
        chosen = self.members if members is None else members
        await asyncio.gather(*(act(member) for member in chosen))

    # --- memory

    @property
    def is_asleep(self) -> bool:
        return bool(self._released)

    def sleep(self) -> None:
        """Gives memory back: weights, cache and graphs; nothing where it cannot be given back."""
        if self._can_sleep and not self._released:
            self.line.run(self._sleep())

    def wake(self) -> None:
        """Takes back what was given; the weights are garbage until the next update."""
        self.line.run(self._take_memory(*ALL_TAGS))

    async def _sleep(self) -> None:
        await self._each(lambda member: member.server.flush())
        await self._each(lambda member: member.server.release_memory())
        self._released = set(ALL_TAGS)
        for member in self.members:
            member.version = None

    async def _take_memory(self, *tags: str) -> None:
        wanted = [tag for tag in tags if tag in self._released]
        if wanted:
            await self._each(lambda member: member.server.take_memory(*wanted))
            self._released -= set(wanted)

    # --- life and death

    def close(self) -> None:
        """Ends the router and the servers that are ours, with everything they started."""
        for task in self._tasks:
            task.cancel()
        if self._router is not None:
            self._router.close()
        self._carrier.close()
        for member in self.members:
            if member.process is not None:
                member.process.kill()

    async def _watch(self, member: Member) -> None:
        """Brings a member up and brings it back when its process died; woken every WATCH_S."""
        try:
            await self._bring_up(member)
            await self._register(member)
            while True:
                await asyncio.sleep(WATCH_S)
                death = None if member.process is None else member.process.death()
                if death is not None:
                    await self._bring_back(member, death)
        except TandemError as error:
            log.error("%s", error)  # whoever waits for it may be busy loading a model
            await self._fail(error)

    async def _bring_up(self, member: Member) -> None:
        """Waits until a server answers; raises EngineError with its last lines if it died."""
        deadline_s, num_starts = time.monotonic() + START_S, 1
        while not await member.server.is_healthy(PROBE_S):
            death = None if member.process is None else member.process.death()
            if death is not None and PORT_TAKEN in death.lower() and num_starts < MAX_STARTS:
                num_starts += 1
                self._start(member)
            elif death is not None:
                raise EngineError(f"{member.name} did not start: {death}")
            if time.monotonic() > deadline_s:
                raise EngineError(
                    f"{member.name} ({member.server.url}) was not ready within {START_S:g} s"
                )
            await asyncio.sleep(WATCH_S)
        member.is_up = True
        await self.gate.change()

    def _start(self, member: Member) -> None:
        assert member.process is not None, "only processes of ours are started"
        member.process.start()
        member.server.url = member.process.url

    async def _bring_back(self, member: Member, death: str) -> None:
        """Starts a server anew and gives it the weights that the others have."""
        member.is_up, member.is_listed, member.version = False, False, None
        member.num_restarts += 1
        if member.num_restarts > MAX_RESTARTS:
            raise EngineError(f"{member.name} died {member.num_restarts} times; {death}")
        log.warning("%s died and is started anew: %s", member.name, death)
        if self._router is not None:
            await self._router.forget(self.line, member.server)
        self._start(member)
        await self._bring_up(member)
        async with self._updating:
            if member.version != self.version:
                await self._catch_up(member)
        await self._register(member)
        log.warning("%s is back with weight version %d", member.name, self.version)

    async def _register(self, member: Member) -> None:
        if self._router is not None:
            await self._router.until_ready(self.line)
            await self._router.register(self.line, member.server)
        member.is_listed = True
        await self.gate.change()

    async def _catch_up(self, member: Member) -> None:
        if self._again is None:
            raise EngineError(
                f"{member.name} is back without weights, and those of version {self.version} are "
                "no longer there; resume the run from its last checkpoint"
            )
        weights = self._again()
        assert weights.version == self.version, "the weights to repeat are of the last update"
        await member.server.pause()
        await asyncio.to_thread(self._carrier.send, [member.server], weights)
        await _take_over(member, weights.version)

    async def _probe(self, health: Health) -> None:
        """Ends servers that hang, so that `_watch` brings them back; woken by time."""
        await asyncio.sleep(health.first_wait_s)
        while True:
            await asyncio.sleep(health.interval_s)
            for member in self.members:
                if not member.is_up or member.process is None or self._updating.locked():
                    continue
                if not await member.server.is_healthy(health.timeout_s) and member.is_up:
                    log.warning("%s does not answer and is ended", member.name)
                    member.process.kill()


async def _nothing() -> None:
    """Cuts nothing: nobody asks for anything yet."""


async def _gate_and_lock() -> tuple[Gate, asyncio.Lock]:
    return Gate(), asyncio.Lock()


async def _take_over(member: Member, version: int) -> None:
    """Names the weights that a server was given, and lets it sample with nothing old cached."""
    await member.server.flush()
    await member.server.set_version(version)
    await member.server.resume()
    member.version = version
