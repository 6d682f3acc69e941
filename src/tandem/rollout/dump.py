"""Rollouts as files of plain values, to be looked at and to be trained on again.

A file is what `torch.save` makes of `{"rollout_id": int, "samples": [one dictionary a sample]}`.
A sample has the dialect's field names. Under `exact` lies what those do not say: its columns about
every token, its scalar reward, and its prompt as the data set had it. Values are dictionaries,
lists, numbers, text, None and tensors, so `torch.load(path, weights_only=True)` reads it.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tandem.contracts import Sampler
from tandem.errors import DataError
from tandem.hooks.view import DialectSample, view_of
from tandem.types import Ending, Group, Prompt, Rollout, Sample

COLUMNS = ("sampled_T", "logprobs_T", "version_T")
PLAIN_FIELDS = ("index", "position", "text", "rollout", "reward", "verdict", "metadata")
"""Fields of a sample that are plain already; beside them are its columns and its ending."""


class DumpingSampler:
    """Another sampler whose rollouts are also written to files; implements `contracts.Sampler`."""

    def __init__(self, sampler: Sampler, template: str) -> None:
        """`template` is the path of the files, with `{rollout_id}` to be filled in."""
        self._sampler, self._template = sampler, template
        self.state, self.restore = sampler.state, sampler.restore

    def collect(self, step: int) -> Rollout:
        """What the other sampler gives, once it is written."""
        rollout = self._sampler.collect(step)
        write(dumped(rollout), path_of(self._template, step))
        return rollout


def path_of(template: str, rollout_id: int) -> Path:
    """The path of one rollout's file."""
    return Path(template.replace("{rollout_id}", str(rollout_id)))


def write(content: Mapping[str, Any], path: Path) -> None:
    """Writes a file, whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    torch.save(content, unfinished)
    os.replace(unfinished, path)


def read(path: Path) -> tuple[Group, ...]:
    """The groups of a file that `dumped` described; raises DataError."""
    if not path.is_file():
        raise DataError(
            f"{path} is not there; --load-debug-rollout-data wants a file for each rollout, as "
            "--save-debug-rollout-data writes them: set --num-rollout to as many as there are"
        )
    try:
        content = torch.load(path, weights_only=True)
        return groups_of(content)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no rollout that --save-debug-rollout-data wrote "
            f"({type(error).__name__}: {error!s:.200}); sample it again"
        ) from error


def dumped(rollout: Rollout) -> dict[str, Any]:
    """A rollout's groups as plain values, in their order."""
    return {
        "rollout_id": rollout.step,
        "samples": [
            {**_dialect(group.prompt, sample), "exact": _exact(group.prompt, sample)}
            for group in rollout.groups
            for sample in group.samples
        ],
    }


def groups_of(content: Mapping[str, Any]) -> tuple[Group, ...]:
    """The groups that `dumped` was given; raises KeyError and TypeError for something else."""
    prompts: dict[int, Prompt] = {}
    members: dict[int, list[Sample]] = {}
    for told in content["samples"]:
        place, exact = told["group_index"], told["exact"]
        if place not in prompts:
            prompt = exact["prompt"]
            tokens_T = np.asarray(prompt.pop("tokens"), np.int32)
            prompts[place] = Prompt(
                index=place, tokens_T=tokens_T, label=plain_again(told["label"]), **prompt
            )
        members.setdefault(place, []).append(_sample(told["tokens"], exact))
    return tuple(
        Group(prompt=prompt, samples=tuple(members[place])) for place, prompt in prompts.items()
    )


def plain(value: Any) -> Any:
    """A value as dictionaries, lists, numbers, text, None and tensors; others as their repr."""
    if isinstance(value, Enum):
        return value.value
    if value is None or type(value) in (bool, int, float, str) or torch.is_tensor(value):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return repr(value)


def plain_again(value: Any) -> Any:
    """A value of a file with its tensors as arrays."""
    if torch.is_tensor(value):
        return value.numpy()
    if isinstance(value, dict):
        return {key: plain_again(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain_again(entry) for entry in value]
    return value


def _dialect(prompt: Prompt, sample: Sample) -> dict[str, Any]:
    view = view_of(prompt, sample)
    return {field.name: plain(getattr(view, field.name)) for field in fields(DialectSample)}


def _exact(prompt: Prompt, sample: Sample) -> dict[str, Any]:
    return {
        **{name: plain(getattr(sample, name)) for name in (*COLUMNS, *PLAIN_FIELDS)},
        "experts_TLk": plain(sample.experts_TLk),
        "ending": sample.ending.value,
        "prompt": {
            "tokens": plain(prompt.tokens_T),
            "text": prompt.text,
            "content": plain(prompt.content),
            "metadata": plain(prompt.metadata),
        },
    }


def _sample(tokens: Any, exact: Mapping[str, Any]) -> Sample:
    return Sample(
        tokens_T=np.asarray(tokens, np.int32),
        ending=Ending(exact["ending"]),
        experts_TLk=plain_again(exact.get("experts_TLk")),
        **{name: plain_again(exact[name]) for name in (*COLUMNS, *PLAIN_FIELDS)},
    )
