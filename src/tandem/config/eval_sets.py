"""Evaluation sets: from flags or a YAML file, with every setting filled in (dialect 2.10, 26)."""

from collections.abc import Iterator, Mapping
from typing import Any

from tandem.config.draft import Draft
from tandem.config.nearest import nearest
from tandem.config.sections.sampling import EvalSet

SOURCES = {
    "rm_type": None,
    "custom_rm_path": None,
    "input_key": "eval_input_key",
    "label_key": "eval_label_key",
    "tool_key": "eval_tool_key",
    "metadata_key": "metadata_key",
    "multimodal_keys": "multimodal_keys",
    "apply_chat_template": "apply_chat_template",
    "apply_chat_template_kwargs": "apply_chat_template_kwargs",
    "n_samples_per_eval_prompt": "n_samples_per_eval_prompt",
    "temperature": "eval_temperature",
    "top_p": "eval_top_p",
    "top_k": "eval_top_k",
    "max_response_len": "eval_max_response_len",
    "max_prompt_len": "eval_max_prompt_len",
    "max_context_len": "eval_max_context_len",
    "min_new_tokens": "eval_min_new_tokens",
    "stop": "rollout_stop",
    "stop_token_ids": "rollout_stop_token_ids",
    "skip_special_tokens": "rollout_skip_special_tokens",
    "custom_generate_function_path": "custom_generate_function_path",
    "metadata_overrides": None,
}
"""Where a set's value comes from when the file does not say: one of our fields.

The reward is not inherited here: a set's own would win over what a prompt's metadata asks for.
"""

KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "path": (str,),
    "multimodal_keys": (dict,),
    "apply_chat_template": (bool,),
    "apply_chat_template_kwargs": (dict,),
    "n_samples_per_eval_prompt": (int,),
    "temperature": (float, int),
    "top_p": (float, int),
    "top_k": (int,),
    "max_response_len": (int,),
    "max_prompt_len": (int,),
    "max_context_len": (int,),
    "min_new_tokens": (int,),
    "stop": (list, str),
    "stop_token_ids": (list, int),
    "skip_special_tokens": (bool,),
    "metadata_overrides": (dict,),
}
"""Kinds of the file's values; text where none is named."""

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
    failures += _faults(f"{where}: eval.defaults", defaults, {*SOURCES})
    entries = []
    for place, entry in _entries(top["datasets"]):
        if not isinstance(entry, Mapping):
            failures.append(f"{where}: {place}: wanted `path:` and settings, or a path")
            continue
        faults = list(_faults(f"{where}: {place}", entry, {"name", "path", *SOURCES}))
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
        elif value is not None and not _is_kind(_number(key, value), KINDS.get(key, (str,))):
            yield f"{place}.{key}: {value!r}: wanted {KINDS.get(key, (str,))[0].__name__}"


def _is_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _number(key: str, value: Any) -> Any:
    """YAML reads 1e-5 as text; a number is meant where a number belongs."""
    if isinstance(value, str) and float in KINDS.get(key, ()):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _built(draft: Draft, entry: Mapping[str, Any]) -> EvalSet:
    values: dict[str, Any] = {"name": str(entry["name"]), "path": entry["path"]}
    for key, source in SOURCES.items():
        if entry.get(key) is not None:
            values[key] = _number(key, entry[key])
        elif source is not None:
            values[key] = draft[source]
    for key in ("stop", "stop_token_ids"):
        value = values[key]
        values[key] = tuple(value) if isinstance(value, list | tuple) else (value,)
    for key in ("temperature", "top_p"):
        values[key] = float(values[key])
    return EvalSet(**values)


def _repeated(sets: tuple[EvalSet, ...]) -> Iterator[str]:
    names = [entry.name for entry in sets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two evaluation sets are named {name}; give each its own name"
