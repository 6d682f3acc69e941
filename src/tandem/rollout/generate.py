"""One sample: from a prompt to tokens with their log-probs, versions and ending."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from tandem.rollout.door import Door
from tandem.rollout.settings import Terms
from tandem.types import (
    NO_VERSION,
    Completion,
    Ending,
    Prompt,
    Request,
    Sample,
    SampleKey,
    Sampling,
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


def extended(sample: Sample, prompt: Prompt, completion: Completion, text: str) -> Sample:
    """The sample with what an engine added to it; `text` is all that follows the prompt."""
    length = len(completion.tokens_C)
    metadata = sample.metadata
    if completion.error is not None:
        metadata = {**metadata, "error": completion.error}
    return replace(
        sample,
        tokens_T=np.concatenate([sample.tokens_T, completion.tokens_C]),
        sampled_T=np.concatenate([sample.sampled_T, np.ones(length, dtype=bool)]),
        logprobs_T=np.concatenate([sample.logprobs_T, completion.logprobs_C]),
        version_T=np.concatenate([sample.version_T, completion.version_C]),
        experts_TLk=_experts_of(sample.num_tokens + length, completion),
        ending=completion.ending,
        text=text,
        metadata=metadata,
    )


def _experts_of(length: int, completion: Completion) -> np.ndarray | None:
    """What the engine recorded of these tokens; a stop string may have cut some off."""
    return None if completion.experts_TLk is None else completion.experts_TLk[:length]


class Generator:
    """The rollout of one turn: the engine continues the prompt until it stops."""

    def __init__(self, door: Door, tokenizer: Decodes) -> None:
        self._door = door
        self._tokenizer = tokenizer

    async def __call__(self, prompt: Prompt, sample: Sample, terms: Terms) -> tuple[Sample]:
        """The sample continued until it stops; what it already holds counts toward the limit.

        A sample that has no room left comes back with `Ending.LENGTH` and nothing added.
        """
        request = request_for(prompt, sample, terms.sampling, seed=terms.seed)
        if request is None:
            return (replace(sample, ending=Ending.LENGTH),)
        completion = await self._door.ask(request)
        text = text_after(prompt, sample, completion, self._tokenizer, terms.sampling)
        return (extended(sample, prompt, completion, text),)


def request_for(prompt: Prompt, sample: Sample, sampling: Sampling, *, seed: int) -> Request | None:
    """What to ask an engine so that the sample goes on; None when it has no room left."""
    room = sampling.max_new_tokens - sample.num_sampled
    if room <= 0:
        return None
    return Request(
        id=f"{seed}-{prompt.index}-{sample.position}-{sample.num_tokens}",
        tokens_T=sample.tokens_T,
        sampling=replace(
            sampling,
            max_new_tokens=room,
            min_new_tokens=max(0, sampling.min_new_tokens - sample.num_sampled),
        ),
        key=SampleKey(seed=seed, prompt=prompt.index, sample=sample.position),
        group=f"{seed}-{prompt.index}",
        num_written=sample.num_sampled,
    )


def text_after(
    prompt: Prompt, sample: Sample, completion: Completion, tokenizer: Decodes, sampling: Sampling
) -> str:
    """Everything that follows the prompt once the completion is there, decoded."""
    written = sample.tokens_T[len(prompt.tokens_T) :].tolist() + completion.tokens_C.tolist()
    return tokenizer.decode(written, skip_special_tokens=sampling.skip_special_tokens)
