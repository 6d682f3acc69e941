"""The rollout stage: prompts in, judged groups out."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tandem.contracts import Engine, Reward, Source
from tandem.rollout.events import EventLoop
from tandem.rollout.generate import Decodes, blank_sample, generate
from tandem.rollout.settings import within_context
from tandem.types import Group, Prompt, Rollout, Sample, Sampling

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all) as a round goes on."""


class GroupSampler:
    """Samples and judges whole groups with a bounded number of samples in flight."""

    def __init__(
        self, engine: Engine, reward: Reward, tokenizer: Decodes, *, concurrency: int
    ) -> None:
        self._engine = engine
        self._reward = reward
        self._tokenizer = tokenizer
        self._slots = asyncio.Semaphore(concurrency)

    async def sample(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        num_samples: int,
        seed: int,
        max_context: int | None,
        is_evaluation: bool = False,
        on_sample: Callable[[], None] | None = None,
    ) -> Group:
        """The prompt's group, judged. Samples that were aborted carry no verdict."""
        settings = within_context(sampling, prompt, max_context)

        async def one(position: int) -> Sample:
            blank = blank_sample(
                prompt, index=prompt.index * num_samples + position, position=position
            )
            async with self._slots:
                sample = await generate(
                    self._engine, prompt, blank, settings, seed=seed, tokenizer=self._tokenizer
                )
            if on_sample is not None:
                on_sample()
            return sample

        samples = await asyncio.gather(*(one(position) for position in range(num_samples)))
        group = Group(prompt=prompt, samples=tuple(samples))
        return await self._reward.score(group, is_evaluation=is_evaluation)


class RolloutStage:
    """Collects rollouts; owns the event loop that sampling, hooks and rewards share."""

    def __init__(
        self,
        *,
        source: Source,
        groups: GroupSampler,
        sampling: Sampling,
        max_context: int | None,
        batch_size: int,
        num_samples: int,
        seed: int,
        events: EventLoop,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._groups = groups
        self._sampling = sampling
        self._max_context = max_context
        self._batch_size = batch_size
        self._num_samples = num_samples
        self._seed = seed
        self._events = events
        self._progress = progress or (lambda done, total: None)

    def collect(self, step: int) -> Rollout:
        """`batch_size` judged groups in the order of their prompts, none lost, none doubled."""
        started_s = time.perf_counter()
        groups = self._events.run(self._collect(self._source.take(self._batch_size)))
        seconds = time.perf_counter() - started_s
        return Rollout(step=step, groups=groups, metrics={"perf/rollout_time": seconds})

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must hold so that the next rollout is the same."""
        return {"source": self._source.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; raises DataError when the data set changed."""
        self._source.restore(state["source"])

    async def _collect(self, prompts: Sequence[Prompt]) -> tuple[Group, ...]:
        total = len(prompts) * self._num_samples
        done = 0

        def on_sample() -> None:
            nonlocal done
            done += 1
            self._progress(done, total)

        groups = await asyncio.gather(
            *(
                self._groups.sample(
                    prompt,
                    self._sampling,
                    num_samples=self._num_samples,
                    seed=self._seed,
                    max_context=self._max_context,
                    on_sample=on_sample,
                )
                for prompt in prompts
            )
        )
        return tuple(groups)
