"""A Config as JSON, for checkpoints and run folders."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tandem.config.config import Config
from tandem.config.fields import knobs


def to_dict(cfg: Config) -> dict[str, Any]:
    """Everything of it as JSON values, without secrets."""
    for knob in knobs().values():
        if knob.is_secret:
            section = replace(getattr(cfg, knob.section), **{knob.name: knob.default})
            cfg = replace(cfg, **{knob.section: section})
    return _plain(asdict(cfg))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)  # dates and the like, from a user's own YAML
