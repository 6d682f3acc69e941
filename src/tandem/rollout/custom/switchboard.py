"""Requests that users' functions post over HTTP, taken to the samples that they are for."""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tandem.contracts import Engine
from tandem.hooks.asking import Ask
from tandem.rollout.custom.line import Place
from tandem.rollout.door import Door
from tandem.types import Completion, EngineStats, Request


@dataclass(kw_only=True, slots=True)
class _Attempt:
    """A generate function at work; `asked` counts requests by their tokens."""

    ask: Ask
    asked: Counter[bytes] = field(default_factory=Counter)


class Switchboard:
    """Stands where a server wants an engine; see `server.settings.Samples`.

    A generate function finds its sample's `sampling_seed` among its sampling settings. A request
    that brings it back is asked on behalf of that sample, as `tandem.hooks.generate` asks: its
    randomness does not depend on the order in which requests arrive. The n-th request of an attempt
    with the same tokens gets the n-th branch, so that two drafts of one prompt differ. A request
    with another seed, or none, has the randomness that the server gives it.
    """

    def __init__(self, engine: Engine, door: Door) -> None:
        self._engine, self._door = engine, door
        self._attempts: dict[int, _Attempt] = {}

    @contextmanager
    def connected(self, seed: int, ask: Ask) -> Iterator[None]:
        """Takes requests with this seed to `ask`, as long as the block lasts."""
        self._attempts[seed] = _Attempt(ask=ask)
        try:
            yield
        finally:
            self._attempts.pop(seed, None)

    def add(self, request: Request) -> Awaitable[Completion]:
        """The completion of a request, once somebody waits for it."""
        attempt = self._attempts.get(request.key.seed)
        if attempt is None:
            return self._door.ask(request)
        tokens = request.tokens_T.tobytes()
        nth = attempt.asked[tokens]
        attempt.asked[tokens] += 1
        return attempt.ask(
            request.tokens_T.tolist(), request.sampling, sample=None, branch=nth, id=request.id
        )

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """Ends the named requests, or all that the engine has."""
        await self._engine.abort(ids)

    def stats(self) -> EngineStats:
        """Those of the engine."""
        return self._engine.stats()

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """The engine's log-probs of a sequence."""
        return self._engine.canary(tokens_T)


def sampling_seed(seed: int, place: Place) -> int:
    """A number that stands for one sample of one stream, exact in JSON (53 bits)."""
    told = f"{seed}-{place.prompt}-{place.sample}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little") >> 11
