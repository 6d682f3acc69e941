"""Evaluation sets: from flags or a YAML file, with every setting filled in (dialect 2.10, 26)."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from tandem.config.draft import Draft
from tandem.config.fields import WrongValue, from_yaml, knob_of, knobs
from tandem.config.nearest import nearest
from tandem.config.sections.sampling import EvalSet

OWN = ("name", "path", "rm_type", "custom_rm_path", "metadata_overrides")
"""Fields of a set that no flag gives. Its reward is not inherited: a set's own would win over what
a prompt's metadata asks for."""

KNOBS = {entry.name: knob_of("eval", entry) for entry in fields(EvalSet)}
"""How each field of a set is read."""

NOT_YET = (
    "repetition_penalty",
    "no_stop_trim",
    "min_eval_samples",
    "eval_task_timeout",
    "early_stop",
)
"""Settings of the dialect that are to come; `early_stop` stands for all that begin so."""


def eval_sets(draft: Draft, file: Any) -> tuple[tuple[EvalSet, ...], tuple[str, ...]]:
    """Every evaluation set, and what is wrong with how they were given."""
    if draft["eval_config"]:
        return _from_file(draft, file)
    words = draft["eval_prompt_data"]
    if len(words) == 1:
        words = ("aime", *words)
    if len(words) % 2:
        return (), (
            f"--eval-prompt-data {' '.join(words)}: wanted `name path` pairs or a single path",
        )
    pairs = list(zip(words[::2], words[1::2], strict=True))
    sets = tuple(_built(draft, {"name": name, "path": path}) for name, path in pairs)
    return sets, tuple(_repeated(sets))


def _from_file(draft: Draft, file: Any) -> tuple[tuple[EvalSet, ...], tuple[str, ...]]:
    where = f"--eval-config {draft['eval_config']}"
    if file is None:
        return (), ()  # it could not be read, which was said already
    top = file.get("eval") if isinstance(file, Mapping) else None
    if not isinstance(top, Mapping) or not isinstance(top.get("datasets"), list | Mapping):
        return (), (f"{where}: wanted `eval:` with `datasets:` (and perhaps `defaults:`) below it",)
    failures = [
        f"{where}: eval.{key}: unknown; wanted defaults and datasets"
        for key in top
        if key not in ("defaults", "datasets")
    ]
    defaults = top.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        return (), (f"{where}: eval.defaults: wanted `name: value` lines",)
    failures += _faults(f"{where}: eval.defaults", defaults, {*KNOBS} - {"name", "path"})
    entries = []
    for place, entry in _entries(top["datasets"]):
        if not isinstance(entry, Mapping):
            failures.append(f"{where}: {place}: wanted `path:` and settings, or a path")
            continue
        faults = list(_faults(f"{where}: {place}", entry, {*KNOBS}))
        faults += [
            f"{where}: {place} has no {key}" for key in ("name", "path") if not entry.get(key)
        ]
        failures += faults
        if not faults:
            entries.append(entry)
    if failures:
        return (), tuple(failures)
    sets = tuple(_built(draft, {**defaults, **entry}) for entry in entries)
    return sets, tuple(_repeated(sets))


def _entries(datasets: Any) -> Iterator[tuple[str, Any]]:
    """Each entry with its place in the file; a mapping's keys are the names."""
    if isinstance(datasets, Mapping):
        for name, entry in datasets.items():
            body = {"path": entry} if isinstance(entry, str) else entry
            named = {"name": str(name), **body} if isinstance(body, Mapping) else body
            yield f"eval.datasets.{name}", named
    else:
        for at, entry in enumerate(datasets):
            yield f"eval.datasets[{at}]", entry


def _faults(place: str, entry: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for key, value in entry.items():
        if str(key).startswith(NOT_YET):
            yield f"{place}.{key}: not yet; leave it out"
        elif key not in known:
            yield f"{place}: unknown name {key}{nearest(str(key), known)}"
        elif isinstance(value, str) and "${" in value:
            yield f"{place}.{key}: {value}: references to other entries are not followed"
        elif value is not None:
            try:
                from_yaml(KNOBS[key], value)
            except WrongValue as wanted:
                yield f"{place}.{key}: {value!r}: wanted {wanted}"


def _built(draft: Draft, entry: Mapping[str, Any]) -> EvalSet:
    values: dict[str, Any] = {}
    for key, knob in KNOBS.items():
        if entry.get(key) is not None:
            values[key] = from_yaml(knob, entry[key])
        elif key not in OWN:
            values[key] = draft[source_of(key)]
    return EvalSet(**values)


def source_of(key: str) -> str:
    """The setting that a field of a set comes from when the file does not say."""
    return next(name for name in (f"eval_{key}", key, f"rollout_{key}") if name in knobs())


def _repeated(sets: tuple[EvalSet, ...]) -> Iterator[str]:
    names = [entry.name for entry in sets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two evaluation sets are named {name}; give each its own name"
