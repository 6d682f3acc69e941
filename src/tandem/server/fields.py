"""The fields of a JSON request, read by kind. Nothing that asks for something is dropped."""

import math
from collections.abc import Mapping
from typing import Any

from tandem.server.faults import Refusal


class Fields:
    """Hands out fields once; `done` refuses what nobody took and what would have had an effect.

    A field that is null is a field that is not there.
    """

    def __init__(self, body: Any, where: str = "the request") -> None:
        if not isinstance(body, Mapping):
            raise Refusal(f"{where} is {_kind(body)}; a JSON object is wanted")
        self._left = {name: value for name, value in body.items() if value is not None}
        self._where = where

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it came."""
        return self._left.pop(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def count(self, name: str, default: int | None = None, *, low: int = 0) -> int | None:
        """A whole number of at least `low`."""
        value = self.take(name, default)
        if value is not None and (not is_whole(value) or value < low):
            raise self._wrong(name, value, f"a whole number of at least {low}")
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        value = self.take(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.take(name, default)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """One string or a list of them; empty strings are left out."""
        value = self.take(name, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise self._wrong(name, value, "a string or a list of strings")
        return tuple(one for one in values if one)

    def ids(self, name: str) -> tuple[int, ...]:
        """A list of token ids."""
        value = self.take(name, [])
        if not isinstance(value, list) or not all(map(is_whole, value)):
            raise self._wrong(name, value, "a list of token ids")
        return tuple(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object, {} where there is none."""
        value = self.take(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return value

    def ignore(self, *names: str) -> None:
        """Takes fields that change nothing that is sampled or returned."""
        for name in names:
            self._left.pop(name, None)

    def only(self, name: str, *harmless: Any, why: str = "this server cannot do that") -> None:
        """Refuses a field unless its value asks for nothing."""
        value = self.take(name)
        if not _asks_for_nothing(value) and value not in harmless:
            raise Refusal(f"{self._where}: {name} is {value!r}, and {why}", param=name)

    def done(self) -> None:
        """Refuses fields that nobody knows, unless they ask for nothing."""
        for name, value in self._left.items():
            if not _asks_for_nothing(value):
                raise Refusal(
                    f"{self._where} has {name}, which this server does not know; leave it out",
                    param=name,
                )

    def _wrong(self, name: str, value: Any, wanted: str) -> Refusal:
        return Refusal(f"{self._where}: {name} is {value!r}; wanted is {wanted}", param=name)


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _asks_for_nothing(value: Any) -> bool:
    return value is None or value is False or value == "" or value == [] or value == {}


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
