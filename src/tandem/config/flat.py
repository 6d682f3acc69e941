"""A Config as others see it: hooks, checkpoints and run folders."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from tandem.config.config import SECTIONS, Config
from tandem.config.fields import knobs
from tandem.config.nearest import nearest
from tandem.config.overlay import OPPOSITES


class FlatArgs:
    """`args.rollout_batch_size` and so on; `vars(args)` and `dict(args)` give a copy of all."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        values = object.__getattribute__(self, "_values")
        if name in values:
            return values[name]
        if name == "__dict__":  # what vars() asks for
            return dict(values)
        raise AttributeError(f"there is no setting {name}{nearest(name, values)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"settings are read-only, so {name} cannot be set; to change some for a call, copy "
            "them: types.SimpleNamespace(**vars(args))"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are read-only, so {name} cannot be deleted")

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._values.items())

    def __dir__(self) -> list[str]:
        return sorted((*self._values, *object.__dir__(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlatArgs) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"FlatArgs({len(self._values)} settings; vars(args) shows them)"

    def __reduce__(self) -> tuple[Any, ...]:
        return FlatArgs, (self._values,)


def flat(cfg: Config) -> FlatArgs:
    """The settings of all sections under one roof, with the dialect's derived names.

    Lists of the command line are lists, or None when not given. Names under `custom:` of the
    YAML overlay, model flags (`args.num_layers`) and `--sglang-*`, `--router-*` flags are there
    too; a setting wins over a name of the user's.
    """
    values: dict[str, Any] = {}
    for prefix, flags in (("sglang_", cfg.passthrough.sglang), ("router_", cfg.passthrough.router)):
        values |= {prefix + _name(flag): _words(words) for flag, words in flags.items()}
    values |= {_name(flag): value for flag, value in cfg.expectations.items()}
    values |= cfg.custom
    for section, kind in SECTIONS.items():
        part = getattr(cfg, section)
        values |= {entry.name: getattr(part, entry.name) for entry in fields(kind)}
    for name, value in values.items():
        if isinstance(value, tuple) and name not in ("eval_sets", "rollout_sample_hook_path"):
            values[name] = list(value) or None
    values |= {dialect: not values[ours] for dialect, ours in OPPOSITES.items()}
    return FlatArgs(values | _derived(cfg))


def _derived(cfg: Config) -> dict[str, Any]:
    """Attributes that the dialect's own code sets."""
    return {
        "use_critic": cfg.algo.has_critic,
        "world_size": cfg.cluster.num_trainers,
        "eval_datasets": list(cfg.eval.eval_sets),
        "bf16": cfg.model.dtype == "bf16",
        "fp16": False,
        "rank": 0,
    }


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _words(words: tuple[str, ...]) -> Any:
    """A flag's words as one value: True for a switch, text for one, a list for several."""
    return True if not words else words[0] if len(words) == 1 else list(words)


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
