"""What becomes of an old spelling: one of four fates."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mapped:
    """It sets a field: to `value`, or to the word that follows the flag."""

    field: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Expected:
    """It says something about the checkpoint, which is checked (`legacy.shapes`)."""

    kind: str  # of its value: "switch", "int", "float" or "str"


@dataclass(frozen=True, slots=True)
class NoEffect:
    """It changes nothing, because ...; said once in the log.

    With `only`, that holds for these values; any other is refused, because `otherwise`.
    """

    because: str
    only: tuple[str, ...] = ()
    otherwise: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be honoured, because ..."""

    because: str


Fate = Mapped | Expected | NoEffect | Refused


@dataclass(frozen=True, slots=True)
class OldFlag:
    """One old spelling, how many words follow it, and its fate."""

    flag: str
    takes: str  # "nothing", "one" or "many"
    fate: Fate


def rows(fate: Fate, *, takes: str, flags: str) -> tuple[OldFlag, ...]:
    """One row for each flag of a blank-separated list; all share the fate."""
    return tuple(OldFlag(flag, takes, fate) for flag in flags.split())
