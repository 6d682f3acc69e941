"""`tandem samples RUN`: what the policy wrote and how it was judged, for a person to read."""

import argparse
import json
import pydoc
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tandem.errors import ConfigError, DataError
from tandem.observe.journal import SAMPLES_FILE
from tandem.types import Ending

TRAINING = "train"
"""What the set of samples that are trained on is called here."""

MAX_WIDTH = 100

Row = Mapping[str, Any]


def samples_command(argv: Sequence[str], out: TextIO | None = None) -> int:
    """Shows the samples; in a terminal page by page, else as plain text. Exit status 0."""
    out = out or sys.stdout
    chosen = parser().parse_args(argv)
    path = samples_file(Path(chosen.run))
    wants = filter_of(chosen)
    rows = list(read_samples(path))
    wanted = [row for row in rows if wants(row)]
    shown = wanted[-chosen.last :] if chosen.last else wanted
    if chosen.json:
        out.writelines(json.dumps(row) + "\n" for row in shown)
        return 0
    if out.isatty():
        pydoc.pager("\n".join(pages(shown, len(rows))))
    else:
        out.writelines(page + "\n" for page in pages(shown, len(rows)))
    return 0


def filter_of(chosen: argparse.Namespace) -> Callable[[Row], bool]:
    """Whether a sample is shown; one without a reward is within no bounds of rewards."""
    first, last = steps_of(chosen.step)
    pattern = pattern_of(chosen.grep)
    low, high = chosen.min_reward, chosen.max_reward

    def wants(row: Row) -> bool:
        reward, step = row.get("reward"), row["step"]
        if (first is not None and step < first) or (last is not None and step > last):
            return False
        if chosen.set is not None and (row.get("set") or TRAINING) != chosen.set:
            return False
        if chosen.ending is not None and row.get("ending") != chosen.ending:
            return False
        if chosen.missing and reward is not None:
            return False
        if low is not None and (reward is None or reward < low):
            return False
        if high is not None and (reward is None or reward > high):
            return False
        return pattern is None or any(
            pattern.search(str(row.get(name) or "")) for name in ("prompt", "response")
        )

    return wants


def samples_file(run: Path) -> Path:
    """The file of samples of a run folder, or that file itself; raises DataError."""
    path = run / SAMPLES_FILE if run.is_dir() else run
    if not path.is_file():
        raise DataError(
            f"{run} holds no {SAMPLES_FILE}; wanted is a run folder (--run-dir) or such a file. "
            "It is written after the first rollout"
        )
    return path


def read_samples(path: Path) -> Iterator[Row]:
    """The file's rows in order; a last line that is still being written is left out."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip() or not line.endswith(b"\n"):
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is no JSON: {error}") from error
            if not isinstance(row, dict) or "step" not in row:
                raise DataError(f"{path}:{number} is no sample: it has no step")
            yield row


def pages(rows: Sequence[Row], num_all: int) -> Iterable[str]:
    """A text for each sample, and one that counts them."""
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    for row in rows:
        yield describe(row, width)
    yield f"{len(rows)} of {num_all} samples"


def describe(row: Row, width: int) -> str:
    """One sample: where it is from, its prompt, its answer, and what was said of it."""
    head = f"step {row['step']}, {row.get('set') or TRAINING}, sample {row.get('index')}"
    lines = [f"== {head} ".ljust(width, "=")]
    lines += _block("prompt", row.get("prompt"), width)
    lines += _block("answer", row.get("response"), width)
    if row.get("label") is not None:
        lines += _block("label", row["label"], width)
    reward = row.get("reward")
    lines.append(f"reward   {'missing: no verdict came' if reward is None else f'{reward:g}'}")
    if row.get("verdict") is not None:
        lines += _block("verdict", row["verdict"], width)
    versions = ", ".join(map(str, row.get("versions") or ["none"]))
    counts = f"{row.get('sampled_tokens')} tokens sampled of {row.get('response_tokens')}"
    lines.append(f"ended    {row.get('ending')}; {counts}; weights of version {versions}")
    return "\n".join(lines) + "\n"


def readable(value: Any) -> str:
    """A value as text that a terminal takes for text: control characters are spelled out."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else repr(letter)[1:-1]
        for letter in text
    )


def steps_of(text: str | None) -> tuple[int | None, int | None]:
    """First and last step of `7`, `7:9`, `7:` or `:9`; raises ConfigError."""
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    try:
        start, end = (int(part) if part else None for part in (first, last))
    except ValueError:
        start = end = None
        colon = ""
    if start is None and not colon:
        raise ConfigError(f"--step {text}: wanted is a step (7) or first and last (7:9, 7:, :9)")
    return start, end if colon else start


def pattern_of(text: str | None) -> re.Pattern[str] | None:
    """The regular expression; raises ConfigError for one that is none."""
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ConfigError(f"--grep {text}: {error}; wanted is a regular expression") from error


def _block(name: str, value: Any, width: int) -> list[str]:
    """The value beside its name, its own line breaks kept."""
    lines: list[str] = []
    for line in readable(value).expandtabs(4).split("\n") if value is not None else [""]:
        lines += textwrap.wrap(
            line, max(20, width - 9), drop_whitespace=False, replace_whitespace=False
        ) or [""]
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    return [f"{name if place == 0 else '':<9}{line}".rstrip() for place, line in enumerate(lines)]


def parser() -> argparse.ArgumentParser:
    """Reads the flags of `tandem samples`."""
    flags = argparse.ArgumentParser(
        prog="tandem samples",
        description="Shows the samples that a run kept: a few of every rollout and evaluation.",
    )
    flags.add_argument("run", help="run folder, the one that holds samples.jsonl")
    flags.add_argument("--step", help="one step (7), or first and last (7:9, 7:, :9)")
    flags.add_argument("--min-reward", type=float, help="rewards of at least this")
    flags.add_argument("--max-reward", type=float, help="rewards of at most this")
    flags.add_argument("--set", help=f"an evaluation set by name, or {TRAINING}")
    flags.add_argument("--ending", choices=[ending.value for ending in Ending], help="how it ended")
    flags.add_argument("--grep", help="regular expression that prompt or answer must match")
    flags.add_argument("--missing", action="store_true", help="those without a verdict only")
    flags.add_argument("--last", type=int, help="the last so many of these only")
    flags.add_argument("--json", action="store_true", help="as JSON lines")
    return flags
