"""How users' functions reach the engine."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tandem.errors import HookError
from tandem.hooks.asking import Ask
from tandem.rollout.door import Door, unanswered
from tandem.types import Completion, Ending, Request, SampleKey, Sampling

BRANCH = 1 << 32
"""Distance between the random streams of two branches of one attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Whose randomness it is: a prompt, and a sample of it."""

    prompt: int
    sample: int


def asker(
    door: Door,
    *,
    seed: int,
    max_context: int | None,
    place: Place | None = None,
    num_samples: int = 1,
) -> Ask:
    """Asks the engine for one sample, or for the one that is named, from any thread.

    Without a `place` a sample's own numbers say it: `num_samples` is the size of a group.
    """
    numbers = itertools.count()
    home = asyncio.get_running_loop()

    async def ask(
        tokens: Sequence[int], sampling: Sampling, *, sample: Any, branch: int
    ) -> Completion:
        whose = place or _place_of(sample, num_samples)
        room = sampling.max_new_tokens
        if max_context is not None:
            room = min(room, max_context - len(tokens))
        request = Request(
            id=f"{seed}-{whose.prompt}-{whose.sample}-{branch}-{next(numbers)}",
            tokens_T=np.asarray(tokens, np.int32),
            sampling=replace(sampling, max_new_tokens=max(0, room)),
            key=SampleKey(seed=seed, prompt=whose.prompt, sample=whose.sample + branch * BRANCH),
            group=f"{seed}-{whose.prompt}",
        )
        if room <= 0:
            return unanswered(request, Ending.LENGTH)
        if asyncio.get_running_loop() is home:
            return await door.ask(request)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(door.ask(request), home))

    return ask


def _place_of(sample: Any, num_samples: int) -> Place:
    if sample is None or sample.index is None or sample.group_index is None:
        raise HookError(
            "generate(tokens, sampling_params, sample=...) needs a sample with index and "
            "group_index here: its randomness is theirs"
        )
    return Place(prompt=sample.group_index, sample=sample.index - sample.group_index * num_samples)
