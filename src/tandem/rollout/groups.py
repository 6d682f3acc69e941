"""One group: its samples continued side by side until each has ended, then judged."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from tandem.contracts import Reward
from tandem.rollout.door import Door
from tandem.rollout.generate import blank_sample
from tandem.rollout.settings import Terms, within_context
from tandem.types import Ending, Group, Prompt, Sample


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
