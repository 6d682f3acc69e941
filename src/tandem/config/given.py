"""What a user said, sorted by what becomes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem.config import passthrough
from tandem.config.fields import WANTED, from_words, knobs
from tandem.config.legacy import Expected, Mapped, NoEffect, OldFlag, Refused


@dataclass(slots=True)
class Given:
    """Raw values with their origins, and everything that is wrong with the words.

    `refused` and `without_effect` pair what was said with the reason, for `grouped` to join.
    Only `parse` and `overlay` fill it.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    expectations: dict[str, Any] = field(default_factory=dict)
    custom: dict[str, Any] = field(default_factory=dict)
    sglang: dict[str, tuple[str, ...]] = field(default_factory=dict)
    router: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # words that make no sense
    broken: set[str] = field(default_factory=set)  # fields whose value could not be read
    refused: dict[str, str] = field(default_factory=dict)
    without_effect: dict[str, str] = field(default_factory=dict)
    eval_file: Any = None  # the parsed --eval-config

    def set(self, name: str, value: Any, origin: str) -> None:
        """Notes a value; the last one said wins."""
        self.values[name] = value
        self.origins[name] = origin


def grouped(pairs: Mapping[str, str], verdict: str = "") -> tuple[str, ...]:
    """One line per reason, naming everything it holds for."""
    lines: dict[str, list[str]] = {}
    for said, reason in pairs.items():
        lines.setdefault(reason, []).append(said)
    return tuple(f"{', '.join(said)}: {verdict}{reason}" for reason, said in lines.items())


def wanted_words(
    flag: str, takes: str, wanted: str, words: Sequence[str], *, is_inline: bool
) -> tuple[int, str | None]:
    """How many words the flag takes, and what is wrong with them, if anything."""
    if takes == "nothing":
        if words and not is_inline:
            return 0, f"{flag} takes no value; drop {words[0]!r}"
        return len(words), None
    if not words:
        return 0, f"{flag} wants {wanted}, and nothing follows it"
    if takes == "one" and len(words) > 1:
        return 1, f"{flag} takes one value; {' '.join(words[1:])!r} is left over"
    return len(words), None


def take_old(given: Given, old: OldFlag, words: Sequence[str], origin: str) -> None:
    """Puts an old spelling where its fate says; `words` are exactly its own."""
    said = " ".join((old.flag, *words))
    match old.fate:
        case Refused(because):
            given.refused[said] = because
        case NoEffect(because, only):
            if only and not any(_means_same(word, fine) for word in words for fine in only):
                given.refused[said] = old.fate.otherwise
            else:
                given.without_effect[said] = because
        case Mapped(name, value):
            given.set(name, from_words(knobs()[name], words) if value is None else value, origin)
        case Expected(kind):
            _expect(given, old.flag, kind, words)


def take_foreign(given: Given, owner: str, name: str, words: Sequence[str]) -> None:
    """Keeps the words of a flag of SGLang or its router, or refuses one that the run sets."""
    reason = passthrough.refusal(owner, name)
    if reason is not None:
        given.refused[" ".join((f"--{owner}-{name}", *words))] = f"set by the run itself: {reason}"
        return
    (given.sglang if owner == "sglang" else given.router)[name] = tuple(words)


def _expect(given: Given, flag: str, kind: str, words: Sequence[str]) -> None:
    if kind == "switch":
        given.expectations[flag] = True
        return
    try:
        given.expectations[flag] = {"int": int, "float": float, "str": str}[kind](words[0])
    except ValueError:
        given.failures.append(f"{flag} {words[0]}: wanted {WANTED[kind]}")


def _means_same(word: str, fine: str) -> bool:
    try:
        return float(word) == float(fine)
    except ValueError:
        return word == fine
