"""A Config as JSON, for checkpoints and run folders."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from tandem.config.config import Config, Passthrough
from tandem.config.fields import knobs
from tandem.config.nearest import nearest
from tandem.config.sections import SECTIONS, EvalSet
from tandem.errors import ConfigError

LOOSE = ("expectations", "custom", "origins", "notes")


def to_dict(cfg: Config) -> dict[str, Any]:
    """Everything of it as JSON values, without secrets."""
    for knob in knobs().values():
        if knob.is_secret:
            section = replace(getattr(cfg, knob.section), **{knob.name: knob.default})
            cfg = replace(cfg, **{knob.section: section})
    return _plain(asdict(cfg))


def from_dict(record: Mapping[str, Any]) -> Config:
    """The Config of `to_dict`; what the record lacks has its default. Raises ConfigError."""
    known = (*SECTIONS, "passthrough", *LOOSE)
    failures = [
        f"the saved configuration has an unknown part {name}{nearest(name, known)}"
        for name in record
        if name not in known
    ]
    values: dict[str, Any] = {name: record[name] for name in LOOSE if name in record}
    values["notes"] = tuple(values.get("notes", ()))
    for section, kind in SECTIONS.items():
        entries = dict(record.get(section, {}))
        names = {entry.name for entry in fields(kind)}
        failures += [
            f"the saved configuration has an unknown setting {section}.{name}"
            f"{nearest(name, names)}; it was written by another version"
            for name in entries
            if name not in names
        ]
        if not failures:
            values[section] = kind(**{name: _value(name, item) for name, item in entries.items()})
    if failures:
        raise ConfigError(failures)
    owned = record.get("passthrough", {})
    values["passthrough"] = Passthrough(
        **{
            owner: {flag: tuple(words) for flag, words in flags.items()}
            for owner, flags in owned.items()
        }
    )
    return Config(**values)


def _value(name: str, item: Any) -> Any:
    if name == "eval_sets":
        return tuple(_eval_set(entry) for entry in item)
    return tuple(item) if isinstance(item, list) else item


def _eval_set(entry: Mapping[str, Any]) -> EvalSet:
    values: dict[str, Any] = {
        key: tuple(item) if isinstance(item, list) else item for key, item in entry.items()
    }
    return EvalSet(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # dates and the like, from a user's own YAML
