"""The files of a run folder: JSON lines that are whole at any moment, whatever kills the run."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
NOTES_FILE = "notes.jsonl"
ORDER_FILE = "order.jsonl"
CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
TRACE_FILE = "trace.json"
RECORD_FILES = (METRICS_FILE, SAMPLES_FILE, NOTES_FILE, ORDER_FILE, TRACE_FILE, RUN_FILE)
"""What a run adds to as it goes on."""


class MetricsJournal:
    """`metrics.jsonl`: one line for each step, in order, each flushed as it is written.

    What is learned later about the last step is added to its line. One write call replaces the
    line and never shortens the file, so a reader or a kill sees the old line or the new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        drop_torn_line(path)
        rows = read_rows(path)
        self._last: dict[str, Any] = rows[-1] if rows else {}
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b", buffering=0)
        end = self._file.seek(0, os.SEEK_END)
        self._begin = end - _last_line_bytes(self._file, end)

    @property
    def last(self) -> Mapping[str, Any]:
        """The row of the last step; empty before the first."""
        return self._last

    def write(self, row: Mapping[str, Any], *, step: int) -> None:
        """Adds the row to the line of `step`, which is the last step or a later one."""
        last_step = self._last.get("step", -1)
        assert step >= last_step, f"metrics of step {step} came after step {last_step} was closed"
        if step == last_step:
            self._last = {**self._last, **row}
        else:
            self._begin = self._file.seek(0, os.SEEK_END)
            self._last = {"step": step, **row}
        line = to_json(self._last).encode()
        width = self._file.seek(0, os.SEEK_END) - self._begin
        self._file.seek(self._begin)
        # spaces before the line's end are JSON too
        self._file.write(line.ljust(width - 1) + b"\n")

    def close(self) -> None:
        """Closes the file; nothing is waiting to be written."""
        self._file.close()


def resume_metrics(path: Path, start: int) -> None:
    """Cuts `metrics.jsonl` back to what a checkpoint before step `start` knows.

    Later rows go. Of row `start` only what was measured on the weights that were saved stays: the
    evaluation. What is cut off is kept in `metrics.cut.jsonl`: to go on from an old checkpoint on
    purpose must not cost the curve of what came after it.
    """

    def keep(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if row["step"] < start:
            return row
        kept = {name: value for name, value in row.items() if name.startswith("eval/")}
        return {"step": start, **kept} if row["step"] == start and kept else None

    rows = read_rows(path)
    append_lines(path.with_suffix(f".cut{path.suffix}"), (row for row in rows if keep(row) != row))
    _rewrite(path, map(keep, rows))


def resume_lines(path: Path, start: int) -> None:
    """Drops the lines of step `start` and later from a file of JSON lines."""
    _rewrite(path, (row if row["step"] < start else None for row in read_rows(path)))


def set_aside(path: Path) -> Path | None:
    """Renames a file that holds an earlier run to the first free `name.1.ext`; None if empty."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    number = 1
    while (target := path.with_suffix(f".{number}{path.suffix}")).exists():
        number += 1
    return path.rename(target)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON line in one write."""
    append_lines(path, [row])


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds JSON lines in one write; without lines no file is made."""
    text = "".join(to_json(row) + "\n" for row in rows)
    if not text:
        return
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, [] when there is none; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def drop_torn_line(path: Path) -> None:
    """Cuts off what a killed process left after the last line end."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON document so that a reader sees the old one or the new one."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(plain(value), indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON document, or None when there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def to_json(row: Mapping[str, Any]) -> str:
    """One line of strict JSON: numbers that are not finite become null."""
    return json.dumps(plain(row), allow_nan=False)


def plain(value: Any) -> Any:
    """The value made of what JSON knows; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if getattr(value, "ndim", None) == 0:
        return plain(value.item())  # a number of numpy or torch
    return str(value)


def _rewrite(path: Path, rows: Iterable[Mapping[str, Any] | None]) -> None:
    """Replaces the file's lines in one step; None is a line that goes."""
    if not path.exists():
        return
    draft = path.with_name(path.name + ".new")
    lines = [to_json(row) + "\n" for row in rows if row is not None]
    draft.write_text("".join(lines), encoding="utf-8")
    draft.replace(path)


def _last_line_bytes(file: BinaryIO, end: int) -> int:
    file.seek(0)
    lines = file.read(end).splitlines(keepends=True)
    return len(lines[-1]) if lines else 0
