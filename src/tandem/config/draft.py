"""Values on their way to a Config, each with its origin."""

from collections.abc import Mapping
from typing import Any

from tandem.config.fields import flag_of, knobs


class Draft:
    """Values by field name; what is unset can be filled, and what was said can be told apart."""

    def __init__(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        self.values = {name: knob.default for name, knob in knobs().items()} | dict(values)
        self.origins = dict(origins)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def is_said(self, name: str) -> bool:
        """Whether the user gave it, rather than a default or a rule of ours."""
        return name in self.origins and not self.origins[name].startswith("derived")

    def fill(self, name: str, value: Any, because: str) -> None:
        """Gives an unset field its value; says nothing when there is none to give."""
        if self.values[name] is None and value is not None:
            self.put(name, value, because)

    def put(self, name: str, value: Any, because: str) -> None:
        """Gives a field another value than it had."""
        self.values[name] = value
        self.origins[name] = f"derived from {because}"

    def said(self, name: str) -> str:
        """The flag and its value, as in a message."""
        value = self.values[name]
        return flag_of(name) if value is True else f"{flag_of(name)} {value}"
