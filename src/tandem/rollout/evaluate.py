"""Evaluation: held-out sets, each with sampling settings and rewards of its own."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tandem.config import EvalSet
from tandem.observe import evaluation_metrics
from tandem.rollout.collect import Progress
from tandem.rollout.events import EventLoop
from tandem.rollout.groups import GroupSampler, fresh_group
from tandem.rollout.settings import Terms, evaluation_sampling, evaluation_seed
from tandem.types import Evaluation, Group, Prompt

EvaluationLog = Callable[[int, Mapping[str, tuple[Group, ...]], Mapping[str, float]], bool]
"""Logs an evaluation of these weights; True when nothing else should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """One held-out set and its prompts; prompt indices count from 0 within the set."""

    cfg: EvalSet
    prompts: tuple[Prompt, ...]


class SetEvaluator:
    """Runs every set at once through the same engine, rewards and slots as training."""

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        groups: GroupSampler,
        *,
        seed: int,
        max_context: int,
        events: EventLoop,
        log: EvaluationLog | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._sets = tuple(sets)
        self._groups = groups
        self._seed = seed
        self._max_context = max_context
        self._events = events
        self._log = log
        self._progress = progress or (lambda done, total: None)

    def evaluate(self) -> Evaluation:
        """The metrics of every set. The same prompts get the same randomness at every call."""
        started_s = time.perf_counter()
        self._groups.door.open()
        by_name = self._events.run(self._evaluate())
        metrics: dict[str, float] = {}
        for name, groups in by_name.items():
            metrics |= evaluation_metrics(name, groups)
        seconds = {"perf/eval_time": time.perf_counter() - started_s}
        if self._log is not None and self._log(self._groups.door.version, by_name, metrics):
            metrics = {}
        metrics |= seconds
        return Evaluation(metrics=metrics, groups=by_name)

    async def _evaluate(self) -> dict[str, tuple[Group, ...]]:
        total = sum(len(one.prompts) * one.cfg.n_samples_per_eval_prompt for one in self._sets)
        done = 0

        def on_sample() -> None:
            nonlocal done
            done += 1
            self._progress(done, total)

        answers = await asyncio.gather(*(self._one_set(one, on_sample) for one in self._sets))
        return {one.cfg.name: groups for one, groups in zip(self._sets, answers, strict=True)}

    async def _one_set(
        self, one: EvaluationSet, on_sample: Callable[[], None]
    ) -> tuple[Group, ...]:
        terms = Terms(
            sampling=evaluation_sampling(one.cfg),
            seed=evaluation_seed(self._seed, one.cfg.name),
            max_context=min(self._max_context, one.cfg.max_context_len or self._max_context),
            is_evaluation=True,
            generate_path=one.cfg.custom_generate_function_path,
        )

        async def judged(prompt: Prompt) -> Group:
            group = fresh_group(prompt, one.cfg.n_samples_per_eval_prompt)
            sampled = await self._groups.sample(group, terms, on_sample)
            return await self._groups.judge(sampled, is_evaluation=True)

        return tuple(await asyncio.gather(*map(judged, one.prompts)))
