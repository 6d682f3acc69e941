"""Filters of groups: shipped ones by name, and users' own."""

from collections.abc import Callable
from typing import Any

from tandem.errors import HookError
from tandem.filters import find_shipped
from tandem.hooks import DynamicFilterOutput, Hook, Spec, load
from tandem.rollout.collection import GroupFilter
from tandem.rollout.custom.samples import views_of
from tandem.rollout.rules import KEEP, Ruling
from tandem.types import Group

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
