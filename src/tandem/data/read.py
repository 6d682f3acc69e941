"""Rows of a data file: JSON lines or parquet, whole or a slice."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tandem.errors import DataError

SLICED = re.compile(r"(?P<path>.+)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]", re.DOTALL)
SHOWN_CHARS = 80
"""How much of a broken line its error shows."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record of a data file; `where` names file and line (for parquet: the row), from 1 on."""

    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """A line that is no record, and why."""

    where: str
    reason: str


def read_table(spec: str, *, skip_bad_lines: bool = False) -> tuple[Row, ...]:
    """The rows that `path`, or `path@[start:stop]` with Python's slice rules, names.

    Blank lines do not count. A line that is no JSON object raises DataError with file and line,
    or is left out when `skip_bad_lines` says so; the slice is taken of what can be read.
    """
    path, window = split_slice(spec)
    file = Path(path)
    if not file.is_file():
        raise DataError(f"data file {path} does not exist (or is a folder); check the path")
    if file.suffix == ".jsonl":
        records = _json_records(file)
    elif file.suffix == ".parquet":
        records = _parquet_records(file)
    else:
        raise DataError(
            f"data file {path} ends in {file.suffix or 'nothing'!r}; "
            "wanted .jsonl (one JSON object a line) or .parquet"
        )
    bad: list[Broken] = []

    def readable() -> Iterator[Row]:
        for record in records:
            if isinstance(record, Row):
                yield record
            elif skip_bad_lines:
                bad.append(record)
            else:
                raise DataError(
                    f"{record.where}: {record.reason}; mend the line, or pass --skip-bad-lines"
                )

    rows = tuple(_take(readable(), window))
    if bad:
        log.warning(
            "%d lines could not be read and were skipped; the first is %s: %s",
            len(bad),
            bad[0].where,
            bad[0].reason,
        )
    if not rows:
        raise DataError(f"{spec} holds no rows; check the file" + (" and the slice" * bool(window)))
    return rows


def split_slice(spec: str) -> tuple[str, slice | None]:
    """The path and the slice of `path@[start:stop]`; no slice when none is written."""
    match = SLICED.fullmatch(spec)
    if match is None:
        if spec.endswith("]") and "@[" in spec:
            raise DataError(
                f"{spec}: the slice cannot be read; wanted path@[start:stop] with whole numbers, "
                "either of them optional, e.g. data.jsonl@[0:100] or data.jsonl@[-100:]"
            )
        return spec, None
    try:
        start, stop = (int(match[side]) if match[side] else None for side in ("start", "stop"))
    except ValueError:
        raise DataError(f"{spec}: '-' alone is no number in a slice") from None
    return match["path"], slice(start, stop)


def _take(rows: Iterator[Row], window: slice | None) -> list[Row]:
    if window is None:
        return list(rows)
    start, stop = window.start, window.stop
    if (start or 0) >= 0 and stop is not None and stop >= 0:
        return list(islice(rows, start or 0, max(start or 0, stop)))  # reads no further than needed
    return list(rows)[window]


def _json_records(file: Path) -> Iterator[Row | Broken]:
    with file.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # some editors write a byte order mark
            if raw.isspace() or not raw:
                continue
            where = f"{file}, line {line}"
            try:
                fields = json.loads(raw)
            except UnicodeDecodeError as error:
                yield Broken(where=where, reason=f"not UTF-8 text ({error.reason})")
            except json.JSONDecodeError as error:
                near = f"column {error.colno} of {_shown(raw)}"
                yield Broken(where=where, reason=f"not JSON: {error.msg} at {near}")
            except (ValueError, RecursionError) as error:
                yield Broken(where=where, reason=f"not JSON: {error}")
            else:
                if isinstance(fields, dict):
                    yield Row(where=where, fields=fields)
                else:
                    kind = type(fields).__name__
                    yield Broken(where=where, reason=f"a JSON object was wanted, this is a {kind}")


def _shown(raw: bytes) -> str:
    text = raw.decode(errors="replace").rstrip()
    return repr(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "...")


def _parquet_records(file: Path) -> Iterator[Row | Broken]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{file} is parquet and pyarrow is not installed; pip install 'tandem-rl[parquet]', "
            "or write the data as .jsonl"
        ) from None
    line = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    line += 1
                    yield Row(where=f"{file}, row {line}", fields=fields)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error
