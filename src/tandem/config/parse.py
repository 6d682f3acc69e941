"""Command line to raw values, each with its origin. Nothing is derived here."""

from collections.abc import Sequence

from tandem.config import passthrough
from tandem.config.fields import Knob, WrongValue, flag_of, from_words, knobs
from tandem.config.given import Given, take_foreign, take_old, wanted_words
from tandem.config.legacy import old_flags
from tandem.config.nearest import nearest
from tandem.config.overlay import read_files

COMMAND_LINE = "command line"
NEVER_NEGATED = ("no_", "disable_")


def parse(argv: Sequence[str]) -> Given:
    """What the words say; reads the YAML files that they name, and nothing else."""
    given = Given()
    at = 0
    while at < len(argv):
        word = argv[at]
        if not _is_flag(word):
            before = f" after {argv[at - 1]}" if at else ""
            given.failures.append(f"{word!r}{before} belongs to no flag; flags begin with --")
            at += 1
            continue
        flag, equals, inline = word.partition("=")
        if equals:
            _take(given, flag, [inline], is_inline=True)
            at += 1
        else:
            words = _following(argv, at + 1)
            _take(given, flag, words, is_inline=False)
            at += 1 + len(words)
    read_files(given)
    return given


def known_flags() -> list[str]:
    """Every flag there is, old spellings included."""
    return [flag_of(name) for name in knobs()] + list(old_flags())


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _following(argv: Sequence[str], at: int) -> list[str]:
    words = []
    while at < len(argv) and not _is_flag(argv[at]):
        words.append(argv[at])
        at += 1
    return words


def _take(given: Given, flag: str, words: Sequence[str], *, is_inline: bool) -> None:
    """Puts what a flag and the words after it say into `given`."""
    table, old = knobs(), old_flags()
    name = flag.removeprefix("--").replace("-", "_")
    if name in table and flag == flag_of(name):
        _take_knob(given, table[name], words, is_inline)
        return
    negated = table.get(name.removeprefix("no_")) if flag.startswith("--no-") else None
    if negated is not None and _can_be_negated(negated):
        _, fault = wanted_words(flag, "nothing", "", words, is_inline=False)
        if fault:
            given.failures.append(fault)
        else:
            given.set(negated.name, False, COMMAND_LINE)
        return
    if flag in old:
        used, fault = wanted_words(flag, old[flag].takes, "a value", words, is_inline=is_inline)
        if fault:
            given.failures.append(fault)
        else:
            take_old(given, old[flag], words[:used], f"legacy flag {flag}")
        return
    owned = passthrough.split(flag)
    if owned is not None:
        take_foreign(given, *owned, words)
        return
    given.failures.append(f"unknown flag {flag}{nearest(flag, known_flags())}")


def _can_be_negated(knob: Knob) -> bool:
    return knob.kind == "switch" and not knob.name.startswith(NEVER_NEGATED)


def _take_knob(given: Given, knob: Knob, words: Sequence[str], is_inline: bool) -> None:
    used, fault = wanted_words(knob.flag, knob.takes, knob.wanted, words, is_inline=is_inline)
    if fault:
        given.failures.append(fault)
        given.broken.add(knob.name)
        return
    try:
        value = from_words(knob, words[:used])
    except WrongValue as wanted:
        given.failures.append(f"{knob.flag} {' '.join(words[:used])}: wanted {wanted}")
        given.broken.add(knob.name)
        return
    if knob.is_repeated:
        value = given.values.get(knob.name, ()) + value
    given.set(knob.name, value, COMMAND_LINE)
