"""Rollout and evaluation functions of users, in the place of the whole stage."""

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tandem.contracts import Reward
from tandem.errors import HookError, TandemError
from tandem.hooks import Hook, RolloutFnEvalOutput, RolloutFnTrainOutput, Spec, load
from tandem.hooks.asking import Line, connected
from tandem.hooks.view import DialectSample
from tandem.observe import evaluation_metrics
from tandem.rollout.custom.line import asker
from tandem.rollout.custom.samples import sample_of
from tandem.rollout.custom.sources import DataSourceView
from tandem.rollout.door import Door
from tandem.rollout.events import EventLoop
from tandem.rollout.groups import blank_sample
from tandem.rollout.supply import Supply
from tandem.types import Evaluation, Group, Prompt, Rollout

ROLLOUT = Spec(
    "--rollout-function-path", "args, rollout_id, data_source", keywords="evaluation", kind="either"
)
EVALUATION = replace(ROLLOUT, flag="--eval-function-path")


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What users' rollout and evaluation functions work with."""

    args: Any
    supply: Supply
    reward: Reward
    door: Door
    tokenizer: Any
    events: EventLoop
    seed: int
    max_context: int
    num_samples: int
    reward_key: str | None

    async def asked(
        self, hook: Hook, rollout_id: int, source: DataSourceView, *, evaluation: bool
    ) -> Any:
        """What the function says; raises HookError that names it."""
        ask = asker(
            self.door,
            seed=self.seed,
            max_context=self.max_context,
            num_samples=self.num_samples,
            written=source.written,
        )
        line = Line(ask=ask, tokenizer=self.tokenizer)
        with connected(line), hook.at_work(f"rollout {rollout_id}", passes=(TandemError,)):
            if inspect.iscoroutinefunction(hook.call):
                return await hook.call(self.args, rollout_id, source, evaluation=evaluation)
            return await asyncio.to_thread(
                hook.call, self.args, rollout_id, source, evaluation=evaluation
            )


class CustomRollout:
    """A user's function in the place of sampling and judging; implements `contracts.Sampler`.

    An async function runs on the event loop of the run, another one in a thread. Samples that come
    back without a reward are judged here. A failure stops the run.
    """

    def __init__(
        self,
        path: str,
        means: Means,
        *,
        batch_size: int,
        changed: Callable[[tuple[Group, ...]], tuple[Group, ...]] = tuple,
    ) -> None:
        """`changed` is applied to the judged groups: the sample filter. Raises HookError."""
        self._hook, self._means = load(path, ROLLOUT), means
        self._batch_size = batch_size
        self._view = DataSourceView(means.supply, means.reward_key)
        self._changed = changed

    def collect(self, step: int) -> Rollout:
        """What the function gave, judged, in the order of prompts."""
        started_s = time.perf_counter()
        groups, metrics = self._means.events.run(self._collect(step))
        seconds = {"perf/rollout_time": time.perf_counter() - started_s}
        return Rollout(step=step, groups=self._changed(groups), metrics={**metrics, **seconds})

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must hold so that the next rollout gets the next prompts."""
        return self._means.supply.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; raises DataError when the data set changed."""
        self._means.supply.restore(state)

    async def _collect(self, step: int) -> tuple[tuple[Group, ...], Mapping[str, float]]:
        said = await self._means.asked(self._hook, step, self._view, evaluation=False)
        if not isinstance(said, RolloutFnTrainOutput):
            said = RolloutFnTrainOutput(samples=said)
        with self._hook.at_work(f"what it returned for rollout {step}"):
            shown = [flattened(group) for group in said.samples]
            groups = [self._view.group_of(views) for views in shown]
        if len(groups) != self._batch_size:
            raise HookError(
                f"{self._hook.name} returned {len(groups)} groups for rollout {step}; wanted "
                f"--rollout-batch-size {self._batch_size}"
            )
        self._view.forget()
        judged = await asyncio.gather(*(self._means.reward.score(group) for group in groups))
        ordered = sorted(judged, key=lambda group: group.prompt.index)
        return tuple(ordered), dict(said.metrics or {})


class CustomEvaluator:
    """A user's function in the place of evaluation; implements `contracts.Evaluator`."""

    def __init__(self, path: str, means: Means) -> None:
        """Raises HookError."""
        self._hook, self._means = load(path, EVALUATION), means
        self._view = DataSourceView(means.supply, means.reward_key)
        self._reward_key = means.reward_key

    def evaluate(self) -> Evaluation:
        """The metrics of every set that the function gave."""
        started_s = time.perf_counter()
        said = self._means.events.run(self._evaluate())
        groups = {name: self._groups(name, one) for name, one in said.data.items()}
        metrics = dict(said.metrics or {})
        for name, told in said.data.items():
            if groups[name]:
                metrics |= evaluation_metrics(name, groups[name])
            rewards = list(told.get("rewards", ()))
            if rewards:
                metrics[f"eval/{name}"] = float(sum(rewards) / len(rewards))
        metrics["perf/eval_time"] = time.perf_counter() - started_s
        return Evaluation(metrics=metrics, groups=groups)

    async def _evaluate(self) -> RolloutFnEvalOutput:
        rollout_id = self._means.door.version  # the version of the weights counts rollouts
        said = await self._means.asked(self._hook, rollout_id, self._view, evaluation=True)
        self._view.forget()
        if isinstance(said, Mapping):
            said = RolloutFnEvalOutput(data=said)
        if not isinstance(said, RolloutFnEvalOutput):
            raise HookError(
                f"{self._hook.name} returned {type(said).__name__}; wanted a RolloutFnEvalOutput "
                "or a dictionary by set"
            )
        return said

    def _groups(self, name: str, told: Mapping[str, Any]) -> tuple[Group, ...]:
        """The samples that the function told of, a group for each prompt."""
        by_prompt: dict[int, list[DialectSample]] = {}
        for nth, view in enumerate(told.get("samples", ())):
            place = nth if view.group_index is None else view.group_index
            by_prompt.setdefault(place, []).append(view)
        with self._hook.at_work(f"samples of evaluation set {name}"):
            return tuple(
                _as_group(place, views, self._reward_key) for place, views in by_prompt.items()
            )


def flattened(group: Any) -> list[DialectSample]:
    """The samples of a group whose entries may be lists of samples of one attempt."""
    views = group if isinstance(group, list) else [group]
    if not all(isinstance(view, list) for view in views):
        return views
    for attempt in views:
        ids = {view.rollout_id for view in attempt}
        if len(ids) != 1 or None in ids:
            raise HookError(f"samples of one attempt must share one rollout_id, got {ids}")
    return [view for attempt in views for view in attempt]


def _as_group(place: int, views: list[DialectSample], reward_key: str | None) -> Group:
    first = views[0]
    start = len(first.tokens) - first.response_length
    blank = Prompt(
        index=place, tokens_T=np.asarray(first.tokens[:start], np.int32), text="", content=""
    )
    prompt = replace(blank, text=str(first.prompt), content=first.prompt, label=first.label)
    samples = [
        sample_of(
            view,
            blank_sample(prompt, index=place * len(views) + position, position=position),
            version=0,
            reward_key=reward_key,
        )
        for position, view in enumerate(views)
    ]
    return Group(prompt=prompt, samples=tuple(samples))
