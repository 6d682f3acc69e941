"""A user's conversion of judged samples to what is trained on."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tandem.contracts import Sampler
from tandem.errors import TandemError
from tandem.hooks import Spec, load
from tandem.hooks.view import DialectSample
from tandem.rollout.custom.samples import Misshapen, sample_of, views_of
from tandem.types import Ending, Group, Rollout, Sample

CONVERT = Spec("--custom-convert-samples-to-train-data-path", "args, samples")

SCORE = "train_reward"
"""In a converted sample's metadata: the reward that its advantage starts from."""

NEEDED = ("tokens", "response_lengths", "rewards")
OPTIONAL = (
    "raw_reward",
    "truncated",
    "sample_indices",
    "rollout_ids",
    "loss_masks",
    "rollout_log_probs",
    "teacher_log_probs",
)
COUNTED_HERE = ("rollout_mask_sums", "total_lengths")
"""Follow from the other entries."""

log = logging.getLogger(__name__)


class ConvertedSampler:
    """Another sampler whose rollouts a user's function converts; implements `contracts.Sampler`.

    The function gets all samples of a rollout and gives a dictionary of lists with one entry a
    training sample. `rewards` go into advantages as they are. A failure stops the run.
    """

    def __init__(self, sampler: Sampler, path: str, args: Any) -> None:
        """Raises HookError."""
        self._sampler, self._hook, self._args = sampler, load(path, CONVERT), args
        self._has_warned = False
        self.state, self.restore = sampler.state, sampler.restore

    def collect(self, step: int) -> Rollout:
        """What the other sampler gives, with the samples that the function made of it."""
        rollout = self._sampler.collect(step)
        views = [view for group in rollout.groups for view in views_of(group)]
        with self._hook.at_work(f"the samples of rollout {step}", passes=(TandemError,)):
            data = self._hook.call(self._args, views)
            self._look(data)
            groups = converted(rollout.groups, views, data)
        return replace(rollout, groups=groups)

    def _look(self, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise Misshapen(f"returned {type(data).__name__}; wanted a dictionary of lists")
        missing = [name for name in NEEDED if data.get(name) is None]
        if missing:
            raise Misshapen(f"returned no {', '.join(missing)}")
        unread = sorted(set(data) - {*NEEDED, *OPTIONAL, *COUNTED_HERE})
        if unread and not self._has_warned:
            log.warning("%s: nothing here reads %s", self._hook.name, ", ".join(unread))
            self._has_warned = True


def converted(
    groups: Sequence[Group], views: Sequence[DialectSample], data: Mapping[str, Any]
) -> tuple[Group, ...]:
    """The groups with the samples of `data`; one without samples is left out.

    `views` are the samples as the function got them. Raises Misshapen.
    """
    count = len(data["tokens"])
    lists = {name: data[name] for name in (*NEEDED, *OPTIONAL) if data.get(name) is not None}
    wrong = {name: len(one) for name, one in lists.items() if len(one) != count}
    if wrong:
        raise Misshapen(f"tokens has {count} entries, and {wrong}")
    if "sample_indices" not in lists and count != len(views):
        raise Misshapen(f"{count} samples for {len(views)} need sample_indices to say whose")
    known = {
        sample.index: (place, sample)
        for place, group in enumerate(groups)
        for sample in group.samples
    }
    by_index = {view.index: view for view in views}
    members: dict[int, list[Sample]] = {}
    for nth in range(count):
        index = lists["sample_indices"][nth] if "sample_indices" in lists else views[nth].index
        if index not in known:
            raise Misshapen(f"sample_indices has {index}, which is no sample of this rollout")
        place, before = known[index]
        entry = {name: one[nth] for name, one in lists.items()}
        sample = _converted(by_index[index], before, entry)
        if sample.num_tokens < len(groups[place].prompt.tokens_T):
            raise Misshapen(f"tokens of sample {index} are fewer than those of its prompt")
        members.setdefault(place, []).append(sample)
    return tuple(
        replace(group, samples=tuple(members[place]))
        for place, group in enumerate(groups)
        if place in members
    )


def converted_scores(groups: Sequence[Group]) -> list[np.ndarray]:
    """The rewards `[G]` of each group that the function gave."""
    return [
        np.array([sample.metadata[SCORE] for sample in group.samples], np.float64)
        for group in groups
    ]


def _converted(shown: DialectSample, before: Sample, entry: Mapping[str, Any]) -> Sample:
    """One training sample, from what the function said of it and what it was."""
    view = copy.copy(shown)
    view.tokens = [int(token) for token in entry["tokens"]]
    view.response_length = int(entry["response_lengths"])
    view.loss_mask = entry.get("loss_masks", shown.loss_mask)
    view.rollout_log_probs = entry.get("rollout_log_probs", shown.rollout_log_probs)
    sample = sample_of(view, before, version=-1, reward_key=None)
    raw = entry.get("raw_reward", entry["rewards"])
    metadata = {**sample.metadata, SCORE: float(entry["rewards"])}
    if "teacher_log_probs" in entry:
        metadata["teacher_log_probs"] = entry["teacher_log_probs"]
    ending = before.ending
    if "truncated" in entry and ending in (Ending.STOP, Ending.LENGTH):
        ending = Ending.LENGTH if entry["truncated"] else Ending.STOP
    return replace(
        sample,
        reward=None if raw is None else float(raw),
        verdict=before.verdict,
        ending=ending,
        rollout=int(entry.get("rollout_ids", before.rollout)),
        metadata=metadata,
    )
