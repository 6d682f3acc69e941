"""What a field says about its flag: name, kind of value, default, help."""

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from tandem.config.config import SECTIONS

WANTED = {
    "switch": "no value",
    "int": "a whole number",
    "float": "a number",
    "str": "a value",
    "ints": "whole numbers",
    "strs": "one value or more",
    "json": "a JSON object",
}


class WrongValue(ValueError):
    """A value that its field cannot hold; the text says what was wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting: a field of a section, seen as a flag."""

    section: str
    name: str
    kind: str  # a key of WANTED, or "choice"
    choices: tuple[str, ...]
    default: Any
    can_be_unset: bool  # None is a value
    is_repeated: bool  # every occurrence of the flag adds to the value
    is_secret: bool

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def wanted(self) -> str:
        """What its value must be, in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        return WANTED[self.kind]

    @property
    def takes(self) -> str:
        """How many words follow the flag: nothing, one, or many."""
        return {"switch": "nothing", "ints": "many", "strs": "many"}.get(self.kind, "one")


def flag_of(name: str) -> str:
    """The flag of a field: `lr_decay_style` is `--lr-decay-style`."""
    return "--" + name.replace("_", "-")


@cache
def knobs() -> Mapping[str, Knob]:
    """Every setting by field name, in the order of the sections."""
    found: dict[str, Knob] = {}
    for section, kind in SECTIONS.items():
        for entry in fields(kind):
            if entry.metadata.get("derived"):
                continue
            assert entry.name not in found, f"two sections have a field {entry.name}"
            found[entry.name] = knob_of(section, entry)
    return found


@cache
def section_help(section: str) -> Mapping[str, str]:
    """The help of every field of a section: the docstring under it, on one line."""
    body = ast.parse(inspect.getsource(SECTIONS[section])).body[0]
    assert isinstance(body, ast.ClassDef), f"section {section} is no class"
    texts: dict[str, str] = {}
    for above, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name):
            value = below.value if isinstance(below, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[above.target.id] = " ".join(value.value.split())
    return texts


def from_words(knob: Knob, words: Sequence[str]) -> Any:
    """The value that the words after a flag mean; raises WrongValue."""
    if knob.kind == "switch":
        return _switch(words)
    if knob.kind == "ints":
        return tuple(_number(word, int) for word in words)
    if knob.kind == "strs":
        return tuple(words)
    (word,) = words
    if knob.kind == "json":
        return _json(word)
    if knob.kind in ("int", "float"):
        return _number(word, int if knob.kind == "int" else float)
    if knob.kind == "choice" and word not in knob.choices:
        raise WrongValue(knob.wanted)
    return word


def from_yaml(knob: Knob, value: Any) -> Any:
    """The value that a YAML entry means; numbers written as text count; raises WrongValue."""
    if value is None:
        if knob.can_be_unset or knob.default in ((), {}):
            return knob.default
        raise WrongValue(knob.wanted)
    if knob.kind == "switch":
        if not isinstance(value, bool):
            raise WrongValue("true or false")
        return value
    if knob.kind == "json":
        return dict(value) if isinstance(value, Mapping) else from_words(knob, [str(value)])
    if isinstance(value, bool | Mapping):
        raise WrongValue(knob.wanted)
    if knob.takes == "many":
        items = value if isinstance(value, list) else [value]
        return from_words(knob, [str(item) for item in items])
    if isinstance(value, list):
        raise WrongValue(knob.wanted)
    if knob.kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    return from_words(knob, [str(value)])


def knob_of(section: str, entry: Field) -> Knob:
    """A field of a section as a setting."""
    # `int | None` is a UnionType, `Literal[...] | None` a typing.Union
    is_union = isinstance(entry.type, UnionType) or NoneType in get_args(entry.type)
    options = list(get_args(entry.type)) if is_union else [entry.type]
    (kind,) = (option for option in options if option is not NoneType)
    choices = tuple(get_args(kind)) if get_origin(kind) is Literal else ()
    default = None if entry.default is MISSING else entry.default
    if entry.default_factory is not MISSING:
        default = entry.default_factory()
    return Knob(
        section=section,
        name=entry.name,
        kind="choice" if choices else _kind(kind),
        choices=choices,
        default=default,
        can_be_unset=NoneType in options,
        is_repeated=bool(entry.metadata.get("repeat")),
        is_secret=bool(entry.metadata.get("secret")),
    )


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return "ints" if get_args(annotation)[0] is int else "strs"
    if get_origin(annotation) is Mapping:
        return "json"
    return {bool: "switch", int: "int", float: "float", str: "str"}[annotation]


def _switch(words: Sequence[str]) -> bool:
    if not words:
        return True
    said = {"true": True, "1": True, "false": False, "0": False}.get(words[0].lower())
    if said is None or len(words) > 1:
        raise WrongValue("no value")
    return said


def _number(word: str, kind: type) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise WrongValue("a whole number" if kind is int else "a number") from None


def _json(word: str) -> Mapping[str, Any]:
    try:
        value = json.loads(word)
    except json.JSONDecodeError as error:
        raise WrongValue(f"a JSON object ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(value, dict):
        raise WrongValue("a JSON object")
    return value
