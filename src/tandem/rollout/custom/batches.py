"""Hooks about a whole round: marking samples, looking at all of them, logging."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tandem.hooks import Hook, Spec, load
from tandem.hooks.view import DialectSample, DialectStatus
from tandem.rollout.custom.samples import Misshapen, sample_of, views_of
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
