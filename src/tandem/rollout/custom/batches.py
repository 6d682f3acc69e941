"""Hooks about whole groups and rounds: choosing, marking, looking at all of them, logging."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tandem.errors import HookError
from tandem.filters import find_shipped
from tandem.hooks import DynamicFilterOutput, Hook, Spec, load
from tandem.hooks.view import DialectSample, DialectStatus
from tandem.rollout.collection import GroupFilter
from tandem.rollout.custom.samples import Misshapen, sample_of, views_of
from tandem.rollout.rules import KEEP, Ruling
from tandem.types import Group

SAMPLE_FILTER = Spec("--rollout-sample-filter-path", "args, groups")
ALL_SAMPLES = Spec("--rollout-all-samples-process-path", "args, all_groups, data_source")
LOG = Spec(
    "--custom-rollout-log-function-path",
    "rollout_id, args, samples, extra_metrics, rollout_time",
)
EVAL_LOG = Spec("--custom-eval-rollout-log-function-path", "rollout_id, args, data, extra_metrics")

log = logging.getLogger(__name__)


class SampleFilter:
    """Lets a user's function change the samples of the kept groups; a failure stops the run."""

    def __init__(self, path: str, args: Any, reward_key: str | None) -> None:
        self._hook, self._args, self._reward_key = load(path, SAMPLE_FILTER), args, reward_key

    def __call__(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups as the function left them; `remove_sample` leaves a sample untrained."""
        shown = [views_of(group) for group in groups]
        with self._hook.at_work(f"the {len(groups)} kept groups"):
            self._hook.call(self._args, shown)
            return tuple(
                self._back(group, views) for group, views in zip(groups, shown, strict=True)
            )

    def _back(self, group: Group, views: Sequence[DialectSample]) -> Group:
        if len(views) != len(group.samples):
            raise Misshapen("a group has another number of samples; set remove_sample instead")
        samples = [
            sample_of(view, before, version=-1, reward_key=self._reward_key)
            for view, before in zip(views, group.samples, strict=True)
        ]
        return replace(group, samples=tuple(samples))


def show_all(hook: Hook, args: Any, groups: Sequence[Group], data_source: Any) -> None:
    """Calls `--rollout-all-samples-process-path`; a failure stops the run."""
    ordered = sorted(groups, key=lambda group: group.prompt.index)
    with hook.at_work(f"all {len(groups)} groups of a round"):
        hook.call(args, [views_of(group) for group in ordered], data_source)


def log_round(
    hook: Hook,
    args: Any,
    rollout_id: int,
    groups: Sequence[Group],
    metrics: Mapping[str, float],
    seconds: float,
) -> bool:
    """Whether the function has logged the round itself; one that raises has not."""
    samples = [view for group in groups for view in views_of(group)]
    try:
        return bool(hook.call(rollout_id, args, samples, dict(metrics), seconds))
    except Exception as error:
        log.warning("%s", hook.failed(error, f"rollout {rollout_id}"), exc_info=error)
        return False


def log_evaluation(
    hook: Hook,
    args: Any,
    rollout_id: int,
    groups: Mapping[str, Sequence[Group]],
    metrics: Mapping[str, float],
) -> bool:
    """Whether the function has logged the evaluation itself; one that raises has not."""
    data = {}
    for name, of_set in groups.items():
        views = [view for group in of_set for view in views_of(group)]
        data[name] = {
            "rewards": [sample.reward for group in of_set for sample in group.samples],
            "truncated": [view.status == DialectStatus.TRUNCATED for view in views],
            "samples": views,
        }
    try:
        return bool(hook.call(rollout_id, args, data, dict(metrics)))
    except Exception as error:
        log.warning("%s", hook.failed(error, f"evaluation {rollout_id}"), exc_info=error)
        return False


DYNAMIC = Spec("--dynamic-sampling-filter-path", "args, group")
BUFFER = Spec("--buffer-filter-path", "args, rollout_id, buffer, num_groups")

NO_REASON = "no_reason"


def dynamic_filter(path: str, args: Any) -> GroupFilter:
    """The filter that `--dynamic-sampling-filter-path` names; raises HookError."""
    shipped = find_shipped(path)
    if shipped is not None:
        is_fallback = shipped.keep_when_insufficient

        def ruled(group: Group) -> Ruling:
            return Ruling(reason=shipped(group), is_fallback=is_fallback)

        return ruled
    hook = load(path, DYNAMIC)
    return lambda group: _asked(hook, args, group)


def buffer_filter(path: str, args: Any) -> Callable[[list[Group], int], list[Group]]:
    """Which waiting groups go on, as `--buffer-filter-path` says; raises HookError."""
    hook = load(path, BUFFER)

    def choose(buffer: list[Group], count: int) -> list[Group]:
        views = [views_of(group) for group in buffer]
        by_id = {id(view): group for view, group in zip(views, buffer, strict=True)}
        with hook.at_work(f"{len(buffer)} waiting groups"):
            chosen = hook.call(args, None, views, count)
        left = [id(view) for view in views]
        if not isinstance(chosen, list) or any(id(view) not in by_id for view in chosen):
            raise HookError(f"{hook.name} must return a list of groups out of its buffer")
        if len(chosen) > count or any(id(view) in left for view in chosen):
            raise HookError(
                f"{hook.name} returned {len(chosen)} groups; wanted at most {count}, each of them "
                "taken out of the buffer that it was given"
            )
        taken = [by_id[id(view)] for view in chosen]
        buffer[:] = [by_id[one] for one in left if one in by_id]
        return taken

    return choose


def _asked(hook: Hook, args: Any, group: Group) -> Ruling:
    with hook.at_work(f"the group of prompt {group.prompt.index}"):
        said = hook.call(args, views_of(group))
    if isinstance(said, DynamicFilterOutput):
        if said.keep:
            return KEEP
        return Ruling(reason=said.reason or NO_REASON, is_fallback=said.keep_when_insufficient)
    if said is None or not hasattr(said, "__bool__"):
        raise HookError(
            f"{hook.name} returned {said!r:.80}; wanted True, False or a DynamicFilterOutput"
        )
    return KEEP if said else Ruling(reason=NO_REASON)
