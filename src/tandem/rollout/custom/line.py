"""How users' functions reach the engine: by call, and over HTTP."""

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tandem.contracts import Engine
from tandem.errors import HookError
from tandem.hooks.asking import Ask
from tandem.rollout.door import Door
from tandem.types import Completion, Ending, EngineStats, Request, SampleKey, Sampling

BRANCH = 1 << 32
"""Distance between the random streams of two branches of one attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Whose randomness it is: a prompt, and a sample of it."""

    prompt: int
    sample: int


class Written:
    """What an engine added for one attempt: hooks keep tokens, not the weights that chose them."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Completion]] = []

    def add(self, start: int, completion: Completion) -> None:
        """The completion of a request that had `start` tokens."""
        self._parts.append((start, completion))

    def versions_on(self, tokens_T: np.ndarray, version_T: np.ndarray) -> np.ndarray:
        """`version_T` with the versions of the tokens that lie where an engine put them."""
        version_T = version_T.copy()
        for start, completion in self._parts:
            tokens_C = completion.tokens_C[: max(0, len(tokens_T) - start)]
            differs_C = tokens_T[start : start + len(tokens_C)] != tokens_C
            count = int(differs_C.argmax()) if differs_C.any() else len(tokens_C)
            version_T[start : start + count] = completion.version_C[:count]
        return version_T


def asker(
    door: Door,
    *,
    seed: int,
    max_context: int | None,
    place: Place | None = None,
    num_samples: int = 1,
    written: Callable[[Place], Written] | None = None,
) -> Ask:
    """Asks the engine for one sample, or for the one that is named, from any thread.

    Without a `place` a sample's own numbers say it: `num_samples` is the size of a group. What
    comes back is noted where `written` says.
    """
    numbers = itertools.count()
    home = asyncio.get_running_loop()

    async def ask(
        tokens: Sequence[int],
        sampling: Sampling,
        *,
        sample: Any = None,
        branch: int = 0,
        id: str | None = None,
    ) -> Completion:
        whose = place or _place_of(sample, num_samples)
        room = sampling.max_new_tokens
        if max_context is not None:
            room = min(room, max_context - len(tokens))
        request = Request(
            id=id or f"{seed}-{whose.prompt}-{whose.sample}-{branch}-{next(numbers)}",
            tokens_T=np.asarray(tokens, np.int32),
            sampling=replace(sampling, max_new_tokens=max(0, room)),
            key=SampleKey(seed=seed, prompt=whose.prompt, sample=whose.sample + branch * BRANCH),
            group=f"{seed}-{whose.prompt}",
        )
        if room <= 0:
            return Completion.empty(request.id, Ending.LENGTH)
        if asyncio.get_running_loop() is home:
            completion = await door.ask(request)
        else:
            asked = asyncio.run_coroutine_threadsafe(door.ask(request), home)
            completion = await asyncio.wrap_future(asked)
        if written is not None:
            written(whose).add(len(tokens), completion)
        return completion

    return ask


def _place_of(sample: Any, num_samples: int) -> Place:
    if sample is None or sample.index is None or sample.group_index is None:
        raise HookError(
            "generate(tokens, sampling_params, sample=...) needs a sample with index and "
            "group_index here: its randomness is theirs"
        )
    return Place(prompt=sample.group_index, sample=sample.index - sample.group_index * num_samples)


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
