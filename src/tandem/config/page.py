"""The settings for reading: `--help`, `tandem show`, and docs/flags.md."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from textwrap import fill
from typing import Any

from tandem.config import not_yet
from tandem.config.config import SECTIONS, Config
from tandem.config.fields import Knob, flag_of, knobs, section_help
from tandem.config.legacy import Expected, Fate, Mapped, NoEffect, Refused, old_flags
from tandem.config.load import read_config
from tandem.config.passthrough import OURS, ROUTERS
from tandem.config.sections.sampling import EvalSet

WIDTH = 96


def help_text() -> str:
    """Every flag with what it takes, its default and its meaning, by section."""
    lines = ["usage: tandem train --hf-checkpoint FOLDER --prompt-data FILE ... (as train.py)"]
    for section, kind in SECTIONS.items():
        lines += ["", f"{kind.__doc__}:"]
        texts = section_help(section)
        for knob in _of(section):
            lines.append(f"  {_usage(knob)}")
            lines.append(_indented(f"{texts[knob.name]}{_default(knob)}"))
    lines += [
        "",
        "Other spellings:",
        "  --no-x turns the switch --x off; --x=value is --x value.",
        _indented("--sglang-* and --router-* are kept for SGLang and its router.", 2),
        _indented("Flags of slime and Megatron are known too: see docs/flags.md.", 2),
    ]
    return "\n".join(lines)


def show(argv: Sequence[str]) -> tuple[str, bool]:
    """Every setting with its origin, remarks and refusals; and whether anything is refused."""
    cfg, failures = read_config(argv)
    lines: list[str] = []
    for section, kind in SECTIONS.items():
        rows = [
            (knob.name, _shown(cfg, knob), cfg.origins.get(knob.name, "default"))
            for knob in _of(section)
        ]
        lines += ["", f"{kind.__doc__}:", *_columns(rows)]
        if section == "eval":
            lines += [line for entry in cfg.eval.eval_sets for line in _eval_set(entry)]
    lines += _extras(cfg)
    if cfg.notes:
        lines += ["", "Remarks:", *(_indented(note, 2) for note in cfg.notes)]
    if failures:
        lines += ["", "Refused:", *(_indented(failure, 2) for failure in failures)]
    return "\n".join(lines[1:]), bool(failures)


def flags_table() -> str:
    """The page of all flags, in Markdown."""
    lines = [
        "# Flags",
        "",
        "Written by `tandem flags > docs/flags.md`; do not edit. Every setting is one field in",
        "`src/tandem/config/sections/`. `--no-x` turns the switch `--x` off, `--x=value` is",
        "`--x value`, the last occurrence wins, and `--custom-config-path file.yaml` wins over the",
        "command line. A flag that is not on this page is an error that names the nearest one.",
        "**Not yet** marks what this version refuses, values that ask for nothing aside.",
    ]
    coming = {
        name for row in not_yet.ROWS if row.fine == not_yet.UNSET for name in row.names.split()
    }
    for section, kind in SECTIONS.items():
        texts = section_help(section)
        lines += ["", f"## {kind.__doc__}", "", "| flag | value | default | meaning |", "|-|-|-|-|"]
        for knob in _of(section):
            mark = "**Not yet.** " if knob.name in coming else ""
            cells = (f"`{knob.flag}`", _value(knob), _given(knob.default), mark + texts[knob.name])
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join([*lines, *_old_spellings(), *_values_to_come(), *_foreign()])


def _old_spellings() -> Iterator[str]:
    yield from ("", "## Old spellings", "")
    yield "Flags of slime and Megatron that are no settings here, and what becomes of them."
    yield from ("", "| flag | what becomes of it |", "|-|-|")
    for old in old_flags().values():
        yield f"| `{old.flag}` | {_cell(_fate(old.fate))} |"


def _fate(fate: Fate) -> str:
    match fate:
        case Mapped(name, value):
            return f"is `{flag_of(name)}{'' if value is None else f' {value}'}`"
        case Expected():
            return "checked against the checkpoint"
        case NoEffect(because, only, _):
            wanted = f"`{' or '.join(only)}`: " if only else ""
            return f"{wanted}no effect, because {because}" + (
                "; other values are refused" if only else ""
            )
        case Refused(because):
            return f"refused: {because}"


def _values_to_come() -> Iterator[str]:
    yield from ("", "## Values to come", "")
    yield "Settings of which this version takes some values only."
    yield from ("", "| flag | values that work | the others need |", "|-|-|-|")
    for row in not_yet.ROWS:
        if row.fine != not_yet.UNSET:
            flags = ", ".join(f"`{flag_of(name)}`" for name in row.names.split())
            yield f"| {flags} | {', '.join(_given(value) for value in row.fine)} | {row.what} |"


def _foreign() -> Iterator[str]:
    yield from ("", "## SGLang and its router", "")
    yield "`--sglang-*` and `--router-*` are kept word for word, except what the run sets itself:"
    yield from ("", "| flag | why it is refused |", "|-|-|")
    for owner, table in (("sglang", OURS), ("router", ROUTERS)):
        for name, reason in table.items():
            yield f"| `--{owner}-{name}` | {reason} |"


def _of(section: str) -> list[Knob]:
    return [knob for knob in knobs().values() if knob.section == section]


def _usage(knob: Knob) -> str:
    return f"{knob.flag} {_value(knob)}".strip()


def _value(knob: Knob) -> str:
    if knob.kind == "choice":
        return " or ".join(knob.choices)
    words = {"switch": "", "ints": "N ...", "strs": "TEXT ...", "json": "JSON"}
    return words.get(knob.kind, {"int": "N", "float": "X", "str": "TEXT"}.get(knob.kind, ""))


def _default(knob: Knob) -> str:
    is_plain = knob.default in (None, False, (), {}) and knob.default != 0
    return "" if is_plain or knob.kind == "switch" else f" [{knob.default}]"


def _given(value: Any) -> str:
    if value is None or value in ((), {}):
        return "unset"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _shown(cfg: Config, knob: Knob) -> str:
    value = getattr(getattr(cfg, knob.section), knob.name)
    if knob.is_secret and value is not None:
        return "(secret)"
    return _words(value)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) and value else _given(value)


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    wide = max(len(name) for name, _, _ in rows)
    middle = min(40, max(len(value) for _, value, _ in rows))
    return [f"  {name:<{wide}}  {value:<{middle}}  {origin}" for name, value, origin in rows]


def _eval_set(entry: EvalSet) -> Iterator[str]:
    yield f"  evaluation set {entry.name}:"
    for item in fields(entry):
        if item.name != "name":
            yield f"    {item.name} {_words(getattr(entry, item.name))}"


def _extras(cfg: Config) -> Iterator[str]:
    parts = (
        ("Said about the checkpoint", cfg.expectations),
        ("Your own values", cfg.custom),
        ("For SGLang", {f"--sglang-{key}": words for key, words in cfg.passthrough.sglang.items()}),
        ("For its router", {f"--router-{key}": w for key, w in cfg.passthrough.router.items()}),
    )
    for title, values in parts:
        if values:
            yield from ("", f"{title}:")
            for name, value in values.items():
                yield f"  {name} {' '.join(value) if isinstance(value, tuple) else value}".rstrip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _indented(text: str, depth: int = 8) -> str:
    space = " " * depth
    return fill(
        text,
        WIDTH,
        initial_indent=space,
        subsequent_indent=space if depth > 2 else space * 2,
        break_long_words=False,
        break_on_hyphens=False,
    )
