"""All engines as one: requests shared out, answers collected, engines that die replaced."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from tandem.errors import EngineError, ResourceError, SyncError, TandemError
from tandem.observe import get_logger
from tandem.runtime.ray.calls import gather
from tandem.runtime.ray.carriers import Carrier
from tandem.runtime.ray.line import Asked, Line
from tandem.runtime.ray.pace import Pace
from tandem.runtime.ray.watch import Watch
from tandem.runtime.turns import Memory
from tandem.types import Completion, EngineStats, Request, Weights

log = get_logger("engine")

MOST_DEATHS = 3
"""So many times an engine is replaced between two weight updates; then its work may be at fault."""

Replace = Callable[[str], Any]
"""Starts another process in the place of the named engine's, its engine open and without weights;
gives its handle."""

Export = Callable[[int], "list[Any] | None"]
"""References to buckets of the weights of a version, from the trainer; None if it has others."""

Newest = Callable[[], "tuple[int, list[Any]]"]
"""The version of the weights that the trainer has now, and references to buckets of them."""


class EngineFleet:
    """Implements `contracts.Engine` over a process for each engine.

    The requests of a group go to one engine, which computes their prompt once; a new group goes to
    the engine with the fewest requests. An engine that dies is replaced and gets the weights that
    the others sample with; its unfinished requests are asked again under their own keys, so their
    tokens are what they would have been. One that shares a process with a rank ends the run.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        watch: Watch,
        *,
        replace: Replace,
        carrier: Carrier | None,
        export: Export,
        newest: Newest,
        bucket_bytes: int,
        version: int,
    ) -> None:
        """`carrier` brings new weights, and is None where there never are any; `export` brings
        those that it did not bring, `newest` others where nobody has those any more."""
        self.lines = tuple(lines)
        self._watch, self._replace = watch, replace
        self._export, self._newest = export, newest
        self._carrier = carrier
        self._bucket_bytes = bucket_bytes
        self._version = version
        self._has_weights = False
        self._is_asleep = False
        self._homes: dict[str, Line] = {}  # of groups, since the last weight update
        self._homeless: list[Asked] = []  # no engine is alive
        self._loop: asyncio.AbstractEventLoop | None = None  # that requests come on
        self._repairs: set[asyncio.Task[None]] = set()
        self._lock = threading.RLock()  # a repair goes on in a thread of its own
        self.pace = Pace(self.lines, self._call)

    # ---- requests

    def add(self, request: Request) -> Awaitable[Completion]:
        """A future of the request's completion; it is sent before the event loop's next turn ends.

        Wants a running event loop. The future holds an EngineError for what can never be served.
        """
        self._loop = asyncio.get_running_loop()
        asked = Asked(request, self._loop.create_future())
        self._ask(asked)
        return asked.future

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """Ends the named requests, or all; their futures are done when this returns."""
        wanted = None if ids is None else set(ids)
        ended = [asked for line in self.lines for asked in line.end(wanted)]
        for asked in list(self._homeless):
            if wanted is None or asked.request.id in wanted:
                self._homeless.remove(asked)
                asked.give_up()
        if ended:
            self.pace.look()
            await asyncio.wait([asked.future for asked in ended])

    def _ask(self, asked: Asked) -> None:
        line = self._line_for(asked.request)
        if line is None:
            self._homeless.append(asked)
            return
        line.send(asked, self._collect)
        self.pace.go()

    def _ask_homeless(self) -> None:
        homeless, self._homeless = self._homeless, []
        for asked in homeless:
            self._ask(asked)

    def _find_homes(self) -> None:
        """Has requests that no engine was alive for asked on the event loop; from any thread."""
        if self._homeless and self._loop is not None:
            self._loop.call_soon_threadsafe(self._ask_homeless)

    def _line_for(self, request: Request) -> Line | None:
        """The engine that has the request's group, else the one with the fewest requests."""
        home = self._homes.get(request.group or "")
        if home is not None and home.is_alive:
            return home
        alive = [line for line in self.lines if line.is_alive]
        if not alive:
            return None
        line = min(alive, key=lambda one: one.num_asked)
        if request.group is not None:
            self._homes[request.group] = line
        return line

    async def _collect(self, line: Line) -> None:
        """Takes answers of one engine until it owes none; woken by an answer or its death."""
        while line.is_alive and line.num_asked and not self.pace.is_on:
            line.deliver(await self._call(line, "take") or ())

    async def _call(self, line: Line, verb: str, *arguments: Any) -> Any:
        """What the engine says; None where it died or failed, which is seen to."""
        handle = line.handle
        try:
            return await handle.sample.remote(verb, *arguments)
        except RayActorError as error:
            if line.handle is handle:  # else another is there already
                self._lose(line, error)
        except Exception as error:
            line.fail(EngineError(f"{line.name} failed: {type(error).__name__}: {error}"))
        return None

    def _lose(self, line: Line, error: Exception) -> None:
        """Asks a dead engine's requests of others at once, and begins to replace it."""
        try:
            for asked in self._mourn(line, error):
                self._ask(asked)
        except TandemError as fault:
            self._fail(fault)
            return
        task = asyncio.get_running_loop().create_task(self._bring_back(line))
        self._repairs.add(task)
        task.add_done_callback(self._repairs.discard)

    async def _bring_back(self, line: Line) -> None:
        """Puts another process in the place of a dead engine, in a thread of its own."""
        try:
            await asyncio.to_thread(self._repair, line)
        except TandemError as fault:
            self._fail(fault)
            return
        if line.is_alive:
            self._ask_homeless()

    def _mourn(self, line: Line, error: Exception) -> list[Asked]:
        """The requests that a dead engine leaves; raises ResourceError where it may not die."""
        heard, where = self._watch.last_heard(line.name), self._watch.describe(line.name)
        unfinished = line.bury()
        line.num_deaths += 1
        if line.has_rank or line.num_deaths > MOST_DEATHS:
            self._homeless += unfinished
            dead = self._watch.dead() | {line.name: f"{where} (last heard of: {heard})"}
            raise ResourceError(
                f"{' and '.join(dead.values())} died. The run stops; resume it from its last "
                "checkpoint (--load)"
            ) from error
        self._watch.remove(line.name)
        log.warning(
            "%s died (last heard of: %s); another is started, its %d unfinished requests are asked "
            "again",
            where,
            heard,
            len(unfinished),
        )
        return unfinished

    def _fail(self, fault: Exception) -> None:
        """Ends every request with the fault: the round cannot be finished."""
        for line in self.lines:
            line.fail(fault)
        for asked in self._homeless:
            asked.fail(fault)
        self._homeless = []

    def _repair(self, line: Line) -> None:
        """Puts another process in the place of a dead engine, with the fleet's weights.

        Where nobody has those any more, it stays without work until the next update brings some,
        or takes the newest, if no other engine is there to sample meanwhile.
        """
        with self._lock:
            if line.is_alive:
                return
            self._revive(line)
            if self._has_weights:
                refs = self._current_weights()
                if refs is None and any(other.is_alive for other in self.lines):
                    log.warning("%s is back and waits for the next weight update", line.name)
                    return
                if refs is None:
                    old, (self._version, refs) = self._version, self._newest()
                    log.warning(
                        "nobody has weights %d any more: what is asked goes on with %d",
                        old,
                        self._version,
                    )
                self._tell(line, "update", line.handle.update.remote(self._version, refs))
            if self._is_asleep:
                self._tell(line, "sleep", line.handle.sample.remote("sleep"))
            line.open(line.handle)
            log.info("%s is back with weights %d", line.name, self._version)

    def _revive(self, line: Line) -> None:
        """Makes sure that the engine has a process, if one without weights."""
        if line.handle is None:
            line.handle = self._replace(line.name)

    def _tell(self, line: Line, verb: str, ref: Any) -> Any:
        return gather([ref], [line.name], verb, self._watch)[0]

    def _current_weights(self) -> "list[Any] | None":
        for line in self.lines:
            if line.is_alive and line.gives:
                try:
                    return ray.get(line.handle.export.remote(self._version, self._bucket_bytes))
                except (RayActorError, SyncError):
                    continue  # it died too, or missed an update: another may have them
        return self._export(self._version)

    # ---- everything else, of all engines at once, from outside the event loop

    def update(self, weights: Weights) -> None:
        """Puts new weights into every engine, dead ones replaced; the ranks have the tensors.

        An engine that they do not reach is named, and gets them once more, in another way. Raises
        SyncError where the trainer has none to give.
        """
        with self._lock:
            self._homes = {}
            for line in self.lines:
                line.num_deaths = 0
                if not line.is_alive:
                    self._revive(line)
                    if self._is_asleep:
                        self._tell(line, "sleep", line.handle.sample.remote("sleep"))
                    line.open(line.handle)
            version = weights.version
            self._version, self._has_weights = version, True
            sharing = [line for line in self.lines if line.shares]
            self._all("update", lambda line: line.handle.update.remote(version, None), sharing)
            apart = [line for line in self.lines if not line.shares]
            if apart:
                assert self._carrier is not None, "new weights, and nobody to bring them"
                faults = self._carrier.send(apart, version)
                for line, fault in faults.items():
                    if isinstance(fault, RayActorError):
                        self._homeless += self._mourn(line, fault)
                self.send_again({line.name: str(fault) for line, fault in faults.items()})
            self._find_homes()

    def send_again(self, missed: Mapping[str, str]) -> None:
        """Puts the weights of the last update once more into engines that missed it.

        `missed` says why, by name. Raises SyncError where the trainer has no such weights any more.
        """
        if not missed:
            return
        for name, why in missed.items():
            log.warning(
                "%s missed weight update %d and gets it again: %s", name, self._version, why
            )
        with self._lock:
            refs = self._export(self._version)
            if refs is None:
                raise SyncError(f"the trainer has no weights {self._version} to send again")
            lines = [line for line in self.lines if line.name in missed]
            self._all("update", lambda line: line.handle.update.remote(self._version, refs), lines)

    def update_numbers(self) -> Mapping[str, float]:
        """Metrics of how the last weights were carried."""
        return {} if self._carrier is None else self._carrier.numbers()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no engine takes a step, whatever is being sampled: so nobody samples with
        weights that were not proven yet."""
        self._sample("hold")
        yield
        self._sample("release")

    def forget(self) -> None:
        """Drops cached prefixes of every engine."""
        self._sample("forget")

    def sleep(self) -> None:
        """Gives the caches' memory back."""
        self._sample("sleep")
        self._is_asleep = True

    def wake(self) -> None:
        """Makes the caches again."""
        self._is_asleep = False
        self._sample("wake")

    def stats(self) -> EngineStats:
        """What is known here, without asking anybody; caches are not: their numbers are 0."""
        return EngineStats(
            version=self._version,
            num_running=sum(line.num_asked for line in self.lines),
            num_waiting=len(self._homeless),
            num_cache_blocks=0,
            num_free_blocks=0,
            num_generated_tokens=0,
            num_prefill_tokens=0,
            num_cached_tokens=0,
            is_asleep=self._is_asleep,
        )

    def state_digest(self, *, as_stored: bool = False) -> Mapping[str, int]:
        """What every engine says; SyncError if they differ."""
        first, *others = (one.digests for one in self.shown(lambda _: as_stored, None))
        for line, other in zip(self.lines[1:], others, strict=True):
            if other != first:
                raise SyncError(f"{line.name} holds other weights than {self.lines[0].name}")
        return first

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """What the first engine says of the sequence."""
        return self.shown(lambda _: None, tokens_T)[0].logprobs_T

    def shown(
        self, as_stored: Callable[[Line], bool | None], tokens_T: np.ndarray | None
    ) -> list[Any]:
        """What each engine shows of its weights, as `EngineSide.show` says."""
        return self._all(
            "show", lambda line: line.handle.sample.remote("show", as_stored(line), tokens_T)
        )

    def memories(self) -> list[Memory]:
        """Of each engine's device."""
        return self._sample("memory")

    def all_stats(self) -> list[EngineStats]:
        """What each engine does now."""
        return self._sample("stats")

    def close(self) -> None:
        """Nothing: the processes end with the run, and with them their engines."""

    def _sample(self, verb: str, *arguments: Any) -> list[Any]:
        return self._all(verb, lambda line: line.handle.sample.remote(verb, *arguments))

    def _all(
        self, verb: str, call: Callable[[Line], Any], lines: Sequence[Line] | None = None
    ) -> list[Any]:
        """Every engine's answer, in order; one that died is replaced and asked again."""
        with self._lock:
            lines = self.lines if lines is None else lines
            refs = [call(line) if line.is_alive else None for line in lines]
            return [self._one(line, verb, call, ref) for line, ref in zip(lines, refs, strict=True)]

    def _one(self, line: Line, verb: str, call: Callable[[Line], Any], ref: Any) -> Any:
        while True:
            if ref is None:
                self._repair(line)
                self._find_homes()
                ref = call(line)
            try:
                return self._tell(line, verb, ref)
            except ResourceError as fault:
                if not isinstance(fault.__cause__, RayActorError):
                    raise
                self._homeless += self._mourn(line, fault.__cause__)
                ref = None
