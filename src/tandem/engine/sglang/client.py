"""The engine as the loop sees it: requests out to the servers, completions back."""

import asyncio
import itertools
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tandem.engine.sglang.fleet import Fleet
from tandem.engine.sglang.line import Busy, Line, Lost
from tandem.engine.sglang.members import Member
from tandem.engine.sglang.wire import Part, generate_body, joined, read_part, until_stop
from tandem.errors import EngineError
from tandem.types import Completion, Ending, EngineStats, Request, Weights

MAX_LOST = 6
"""Answers of one request that may go missing before the run is told."""
MAX_BUSY = 60
LOST_S, BUSY = 0.25, 4
"""Seconds after the first lost answer, and how many times that a busy server is given."""
ENDING_S, ASK_AGAIN_S = 120.0, 1.0
"""An order to end requests is repeated: one may have been on its way to the server."""


@dataclass(slots=True, eq=False)
class Live:
    """A request at work, and the parts of its answer so far."""

    request: Request
    is_ended: bool = False  # somebody asked for its end
    parts: list[Part] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    rid: str | None = None
    member: Member | None = None
    num_lost: int = 0
    num_busy: int = 0

    @property
    def num_written(self) -> int:
        return sum(len(part.tokens_C) for part in self.parts)


class SglangEngine:
    """Samples with stock SGLang servers; implements `contracts.Engine`.

    A request is asked of one server under an id that no other attempt has; an answer that does not
    come whole counts for nothing and the request is asked again, so no sample is doubled. Servers
    tell the weight version at the end of a request only, so requests at work are cut off before an
    update and go on after it: every part has one version, and what they wrote is kept.
    """

    def __init__(
        self,
        line: Line,
        fleet: Fleet,
        *,
        timeout_s: float | None = None,
        patience_s: float = LOST_S,
        ending_s: float = ENDING_S,
    ) -> None:
        """`timeout_s`: for one answer of a server, a whole response long; none when unset.

        `patience_s`: what is waited after the first lost answer; twice as much after the second,
        four times as much when a server is busy. `ending_s`: for a server to end what it was told.
        """
        self._line, self._fleet = line, fleet
        self._timeout_s, self._patience_s, self._ending_s = timeout_s, patience_s, ending_s
        self._live: set[Live] = set()
        self._attempts = itertools.count()
        self._num_generated = self._num_prefilled = self._num_cached = 0
        self._is_closed = False
        fleet.on_cut(self._cut)

    @property
    def fleet(self) -> Fleet:
        """The servers, for whoever updates their weights."""
        return self._fleet

    def add(self, request: Request) -> Awaitable[Completion]:
        """A future of the request's completion; the request is queued before this returns.

        Wants a running event loop. Cancelling the future ends the request.
        """
        if self._is_closed:
            raise EngineError(f"request {request.id} came after the engine was closed")
        return asyncio.wrap_future(self._line.start(self._serve(Live(request))))

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """Ends the named requests, or all; their futures resolve with ABORT and partial tokens."""
        await asyncio.wrap_future(self._line.start(self._abort(ids)))

    def update(self, weights: Weights) -> None:
        """Takes new weights on every server; later tokens carry their version."""
        self._fleet.update(weights)

    def sleep(self) -> None:
        """Gives the servers' memory back, weights too; EngineError while requests are live."""
        if self._live:
            raise EngineError("the engine cannot sleep while requests are live; abort them first")
        self._fleet.sleep()

    def wake(self) -> None:
        """Takes the memory back; the weights are garbage until the next update."""
        self._fleet.wake()

    def stats(self) -> EngineStats:
        """What it does now, and counts since it was made; servers keep the cache to themselves."""
        num_running = sum(live.rid is not None for live in tuple(self._live))
        return EngineStats(
            version=self._fleet.version,
            num_running=num_running,
            num_waiting=len(self._live) - num_running,
            num_cache_blocks=0,
            num_free_blocks=0,
            num_generated_tokens=self._num_generated,
            num_prefill_tokens=self._num_prefilled,
            num_cached_tokens=self._num_cached,
            is_asleep=self._fleet.is_asleep,
        )

    def state_digest(self, *, as_stored: bool = False) -> Mapping[str, int]:
        """Raises EngineError: stock servers do not show their tensors; `canary` is the proof."""
        raise EngineError("SGLang servers do not show their tensors; compare canaries instead")

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """Log-probs of a fixed sequence by the first server, `[T]`, 0 at the first."""
        return self._fleet.witnesses()[0].canary(tokens_T)

    def close(self) -> None:
        """Ends what is live, the servers that are ours, and the connections."""
        if self._is_closed:
            return
        self._is_closed = True
        self._fleet.close()
        self._line.close()

    async def _serve(self, live: Live) -> Completion:
        """Takes one request to the end of its answer; waits at the gate and for servers."""
        self._live.add(live)
        try:
            while True:
                await self._fleet.gate.until(lambda: live.is_ended or self._fleet.may_sample())
                if live.is_ended:
                    return self._completion(live, Ending.ABORT)
                part = await self._ask(live)
                if part is None:
                    continue
                done = self._take(live, part)
                if done is not None:
                    return self._completion(live, done)
        finally:
            self._live.discard(live)

    def _take(self, live: Live, part: Part) -> Ending | None:
        """Adds a part; how the request has ended with it, or None if it goes on."""
        part = until_stop(part, live.request.sampling)
        live.parts.append(part)
        self._num_generated += len(part.tokens_C)
        self._num_cached += part.num_cached
        if part.ending is not Ending.ABORT or live.is_ended:
            return part.ending
        if live.num_written >= live.request.sampling.max_new_tokens:
            return Ending.LENGTH
        if not len(part.tokens_C) and self._fleet.gate.is_open:
            self._count_loss(live, EngineError("a server ended it without having been asked to"))
        return None

    async def _ask(self, live: Live) -> Part | None:
        """One attempt; None if it is to be made again."""
        request, fleet = live.request, self._fleet
        member = fleet.balance.take(request.group, fleet.ready())
        if member is None:
            return None
        version, written = fleet.version, [part.tokens_C for part in live.parts]
        live.rid, live.member = f"{request.id}.{next(self._attempts)}", member
        member.rids.add(live.rid)
        is_answered, delay_s = False, 0.0
        try:
            tokens_T = np.concatenate([request.tokens_T, *written])
            body = generate_body(
                live.rid, tokens_T, request.sampling, request.key, written=live.num_written
            )
            reply = await self._line.call(
                "POST",
                fleet.door_of(member) + "/generate",
                body,
                timeout_s=self._timeout_s,
                headers=fleet.headers(request.group),
            )
            is_answered = True
            part = read_part(reply, wants_logprobs=request.sampling.want_logprobs)
            self._num_prefilled += len(tokens_T) - part.num_cached
            self._check_version(member, part, version)
            live.versions.append(version)
            return part
        except Busy as error:
            is_answered, delay_s = True, BUSY * self._patience_s
            self._count_delay(live, error)
        except Lost as error:
            self._count_loss(live, error)
            delay_s = self._patience_s * live.num_lost
        finally:
            if not is_answered:
                fleet.forsake(member, live.rid)  # nobody waits for it any more
            member.rids.discard(live.rid)
            fleet.balance.leave(request.group)
            live.rid = live.member = None
        await asyncio.sleep(delay_s)
        return None

    def _count_delay(self, live: Live, error: EngineError) -> None:
        live.num_busy += 1
        if live.num_busy > MAX_BUSY:
            raise EngineError(f"request {live.request.id} was put off {MAX_BUSY} times: {error}")

    def _count_loss(self, live: Live, error: EngineError) -> None:
        live.num_lost += 1
        if live.num_lost > MAX_LOST:
            raise EngineError(
                f"request {live.request.id} was asked {live.num_lost} times and no whole answer "
                f"came; the last time: {error}. Look into the logs of the servers"
            )

    def _check_version(self, member: Member, part: Part, version: int) -> None:
        if part.version is not None and part.version != str(version):
            raise EngineError(
                f"{member.name} ({member.server.url}) sampled with weight version {part.version}, "
                f"not {version}: somebody else updates it. Give this run servers of its own"
            )

    async def _cut(self) -> None:
        """Has every request at work answered with what it wrote; none is at a server after it."""
        await self._end_at_servers(lambda live: True)

    async def _abort(self, ids: Sequence[str] | None) -> None:
        chosen = [live for live in self._live if ids is None or live.request.id in set(ids)]
        for live in chosen:
            live.is_ended = True
        await self._fleet.gate.change()
        await self._end_at_servers(lambda live: live.is_ended)

    async def _end_at_servers(self, is_meant) -> None:
        """Orders servers to end requests until none of those meant is at a server.

        Raises EngineError when one does not come back.
        """
        for _ in range(max(1, round(self._ending_s / ASK_AGAIN_S))):
            meant = [live for live in self._live if live.rid is not None and is_meant(live)]
            if not meant:
                return
            is_all = len(meant) == sum(live.rid is not None for live in self._live)
            await self._fleet.end([(live.member, live.rid) for live in meant], is_all=is_all)
            for _ in range(round(ASK_AGAIN_S / 0.005)):
                if not any(live.rid is not None and is_meant(live) for live in meant):
                    break
                await asyncio.sleep(0.005)
        raise EngineError(
            f"{len(meant)} requests did not end within {self._ending_s:g} s of being told to; "
            f"the server of the first is {meant[0].member and meant[0].member.name}"
        )

    def _completion(self, live: Live, ending: Ending) -> Completion:
        last = live.parts[-1] if live.parts else None
        return Completion(
            id=live.request.id,
            **joined(live.parts, live.versions),
            ending=ending,
            matched=last.matched if last is not None else None,
            num_cached=live.parts[0].num_cached if live.parts else 0,
        )
