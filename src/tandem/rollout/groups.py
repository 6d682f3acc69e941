"""Samples and groups: from a prompt to tokens that the engine wrote, side by side, then judged."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from tandem.contracts import Reward
from tandem.rollout.door import Door
from tandem.rollout.settings import Terms, within_context
from tandem.types import NO_VERSION, Completion, Ending, Group, Prompt, Request, Sample, SampleKey


class Continue(Protocol):
    """Takes a sample that has not ended on to its end, or to several samples of one attempt."""

    async def __call__(self, prompt: Prompt, sample: Sample, terms: Terms) -> Sequence[Sample]:
        """One sample or more; ABORT in one of them says that the attempt was cut off."""


class GroupSampler:
    """Samples and judges whole groups with a bounded number of samples at work."""

    def __init__(self, door: Door, proceed: Continue, reward: Reward) -> None:
        self.door = door
        self._proceed = proceed
        self._reward = reward

    async def sample(
        self, group: Group, terms: Terms, on_sample: Callable[[], None] | None = None
    ) -> Group:
        """The group with every sample at its end, or cut off (ABORT) when the door was shut.

        Samples that had ended before are as they were.
        """
        sampling = within_context(terms.sampling, group.prompt, terms.max_context)
        terms = replace(terms, sampling=sampling)

        async def one(sample: Sample) -> Sequence[Sample]:
            if sample.ending is not Ending.ABORT:
                return (sample,)
            async with self.door.slots:
                if not self.door.is_open:
                    return (sample,)
                samples = await self._proceed(group.prompt, sample, terms)
            if on_sample is not None:
                on_sample()
            return samples

        continued = await asyncio.gather(*map(one, group.samples))
        return replace(group, samples=tuple(sample for part in continued for sample in part))

    async def judge(self, group: Group, *, is_evaluation: bool = False) -> Group:
        """The group with the verdicts that came."""
        return await self._reward.score(group, is_evaluation=is_evaluation)


def fresh_group(prompt: Prompt, num_samples: int) -> Group:
    """A group of samples that hold their prompt and nothing else yet."""
    return Group(
        prompt=prompt,
        samples=tuple(
            blank_sample(prompt, index=prompt.index * num_samples + position, position=position)
            for position in range(num_samples)
        ),
    )


class Decodes(Protocol):
    """The part of a tokenizer that rollout needs."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


def blank_sample(prompt: Prompt, *, index: int, position: int) -> Sample:
    """A sample that holds its prompt and nothing else yet; it reads as aborted."""
    length = len(prompt.tokens_T)
    return Sample(
        index=index,
        position=position,
        tokens_T=prompt.tokens_T,
        sampled_T=np.zeros(length, dtype=bool),
        logprobs_T=np.zeros(length, dtype=np.float32),
        version_T=np.full(length, NO_VERSION, dtype=np.int32),
        ending=Ending.ABORT,
        text="",
        metadata=prompt.metadata,
    )


def extended(sample: Sample, completion: Completion, text: str) -> Sample:
    """The sample with what an engine added to it; `text` is all that follows the prompt."""
    length, experts_TLk = len(completion.tokens_C), completion.experts_TLk
    if experts_TLk is not None:  # a stop string may have cut tokens off
        experts_TLk = experts_TLk[: sample.num_tokens + length]
    metadata = sample.metadata
    if completion.error is not None:
        metadata = {**metadata, "error": completion.error}
    return replace(
        sample,
        tokens_T=np.concatenate([sample.tokens_T, completion.tokens_C]),
        sampled_T=np.concatenate([sample.sampled_T, np.ones(length, dtype=bool)]),
        logprobs_T=np.concatenate([sample.logprobs_T, completion.logprobs_C]),
        version_T=np.concatenate([sample.version_T, completion.version_C]),
        experts_TLk=experts_TLk,
        ending=completion.ending,
        text=text,
        metadata=metadata,
    )


class Generator:
    """The rollout of one turn: the engine continues the prompt until it stops."""

    def __init__(self, door: Door, tokenizer: Decodes) -> None:
        self._door = door
        self._tokenizer = tokenizer

    async def __call__(self, prompt: Prompt, sample: Sample, terms: Terms) -> tuple[Sample]:
        """The sample continued until it stops; what it already holds counts toward the limit.

        A sample that has no room left comes back with `Ending.LENGTH` and nothing added.
        """
        sampling = terms.sampling
        room = sampling.max_new_tokens - sample.num_sampled
        if room <= 0:
            return (replace(sample, ending=Ending.LENGTH),)
        request = Request(
            id=f"{terms.seed}-{prompt.index}-{sample.position}-{sample.num_tokens}",
            tokens_T=sample.tokens_T,
            sampling=replace(
                sampling,
                max_new_tokens=room,
                min_new_tokens=max(0, sampling.min_new_tokens - sample.num_sampled),
            ),
            key=SampleKey(seed=terms.seed, prompt=prompt.index, sample=sample.position),
            group=f"{terms.seed}-{prompt.index}",
            num_written=sample.num_sampled,
        )
        completion = await self._door.ask(request)
        written = sample.tokens_T[len(prompt.tokens_T) :].tolist() + completion.tokens_C.tolist()
        text = self._tokenizer.decode(written, skip_special_tokens=sampling.skip_special_tokens)
        return (extended(sample, completion, text),)
