"""Data sources: users' own classes as ours, and ours as hooks see it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tandem.errors import HookError
from tandem.hooks import Spec, load
from tandem.hooks.view import DialectSample
from tandem.rollout.custom.line import Place, Written
from tandem.rollout.custom.samples import Misshapen, sample_of, views_of
from tandem.rollout.supply import Supply
from tandem.types import Group, Prompt

SOURCE = Spec("--data-source-path", "args", kind="class")
NEEDED = ("get_samples", "add_samples", "save", "load", "__len__")


class DataSourceView:
    """The rollout's groups under the dialect's names, for hooks that are handed a data source."""

    def __init__(self, supply: Supply, reward_key: str | None = None) -> None:
        self._supply = supply
        self._reward_key = reward_key
        self._shown: dict[int, tuple[list[DialectSample], Group]] = {}
        self._written: dict[Place, Written] = {}

    def get_samples(self, num_samples: int) -> list[list[DialectSample]]:
        """The next groups: those that wait, then fresh ones."""
        shown = []
        for group in self._supply.take(num_samples):
            views = views_of(group)
            self._shown[id(views)] = (views, group)  # the list is kept alive with its id
            shown.append(views)
        return shown

    def add_samples(self, groups: Sequence[list[DialectSample]]) -> None:
        """Puts groups that came from `get_samples` back, to go on in the next round."""
        for views in groups:
            known = self._shown.pop(id(views), None)
            if known is None:
                raise HookError("add_samples takes groups that get_samples gave, as they are")
            self._supply.put_back([self.group_of(views, known[1])])

    def group_of(self, views: Sequence[DialectSample], before: Group | None = None) -> Group:
        """The group that a hook made of what `get_samples` gave; raises Misshapen."""
        if before is None:
            known = self._shown.pop(id(views), None)
            before = known[1] if known else self._by_index(views)
        index = before.prompt.index
        by_index = {sample.index: sample for sample in before.samples}
        samples = []
        for view in views:
            parent = by_index.get(view.index) if view.index is not None else None
            if parent is None:
                raise Misshapen(f"sample {view.index} is none of prompt {index}")
            samples.append(
                replace(
                    sample_of(
                        view,
                        parent,
                        version=0,
                        reward_key=self._reward_key,
                        written=self.written(Place(prompt=index, sample=parent.position)),
                    ),
                    rollout=parent.rollout if view.rollout_id is None else view.rollout_id,
                )
            )
        return replace(before, samples=tuple(samples))

    def written(self, place: Place) -> Written:
        """What an engine added to a sample since `forget`."""
        return self._written.setdefault(place, Written())

    def forget(self) -> None:
        """Lets go of groups that nobody brought back."""
        self._shown.clear()
        self._written.clear()

    def __len__(self) -> int:
        return len(self._supply)

    def _by_index(self, views: Sequence[DialectSample]) -> Group:
        """The group that these samples were given in, whatever list they are in now."""
        for _, group in self._shown.values():
            if group.prompt.index == views[0].group_index:
                return group
        raise Misshapen(f"prompt {views[0].group_index} did not come from get_samples")


class CustomSource:
    """A user's class in the place of the data set; implements `contracts.Source`.

    Its groups give the prompts; the samples themselves are made here, so that their numbers are
    those of the run. Where its state goes is its own affair: `save(rollout_id)` is called after
    every rollout of a run that saves, `load(rollout_id)` when a run goes on.
    """

    prompts_per_epoch = 0

    def __init__(self, path: str, args: Any, tokenizer: Any) -> None:
        """Raises HookError when the class lacks a method or cannot be made."""
        self._hook = load(path, SOURCE)
        missing = [name for name in NEEDED if not callable(getattr(self._hook.call, name, None))]
        if missing:
            raise HookError(
                f"{self._hook.name} has no {', '.join(missing)}; a data source has "
                f"{', '.join(NEEDED)}"
            )
        self._tokenizer = tokenizer
        self._next_index = 0
        self._marked: int | None = None
        with self._hook.at_work("being made"):
            self._source = self._hook.call(args)
            self.prompts_per_epoch = len(self._source)

    def take(self, count: int) -> list[Prompt]:
        """The prompts of the next groups; raises HookError when there are none."""
        prompts: list[Prompt] = []
        while len(prompts) < count:
            with self._hook.at_work("get_samples"):
                groups = self._source.get_samples(count - len(prompts))
            if not groups:
                raise HookError(f"{self._hook.name}: get_samples gave no groups")
            prompts += [self._prompt(group[0]) for group in groups]
        return prompts

    def mark(self, rollout_id: int) -> None:
        """Has the class save itself as it is after this rollout."""
        with self._hook.at_work(f"save({rollout_id})"):
            self._source.save(rollout_id)
        self._marked = rollout_id

    def state(self) -> Mapping[str, Any]:
        """The running number, and the rollout after which the class saved itself."""
        return {"next_index": self._next_index, "rollout": self._marked}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where the class saved itself."""
        self._next_index, self._marked = state["next_index"], state["rollout"]
        if self._marked is not None:
            with self._hook.at_work(f"load({self._marked})"):
                self._source.load(self._marked)

    def _prompt(self, view: Any) -> Prompt:
        if not isinstance(view, DialectSample):
            raise HookError(f"{self._hook.name}: wanted lists of tandem.hooks.Sample")
        index, self._next_index = self._next_index, self._next_index + 1
        text = view.prompt if isinstance(view.prompt, str) else self._rendered(view.prompt)
        tokens = view.tokens or self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prompt(
            index=index,
            tokens_T=np.asarray(tokens, np.int32),
            text=text,
            content=view.prompt,
            label=view.label,
            metadata=view.metadata,
        )

    def _rendered(self, messages: Any) -> str:
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
