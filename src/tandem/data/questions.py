"""Questions: what the columns of a row mean."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem.data.read import Row, Table
from tandem.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The names of the columns that are read; a label is read when it has a name."""

    input: str = "input"
    label: str | None = None
    metadata: str = "metadata"
    tools: str = "tools"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What one row asks. `where` names file and line; tools are in `metadata["tools"]` too."""

    content: str | Sequence[Mapping[str, Any]]
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    where: str = ""


def questions_of(
    table: Table, columns: Columns, *, skip_bad_lines: bool = False
) -> tuple[tuple[Question, ...], int]:
    """The questions of a table and the number of rows skipped.

    A row without a key that was asked for, or with a value of the wrong kind, raises DataError
    with file and line; under `skip_bad_lines` it is skipped, unless every row is like that.
    """
    questions: list[Question] = []
    first_fault: DataError | None = None
    for row in table.rows:
        try:
            questions.append(_question(row, columns, table.where(row)))
        except DataError as fault:
            if not skip_bad_lines:
                raise
            first_fault = first_fault or fault
    num_skipped = len(table.rows) - len(questions)
    if first_fault is not None:
        if not questions:
            raise first_fault
        log.warning("%d rows were skipped; the first: %s", num_skipped, first_fault)
    return tuple(questions), num_skipped


def _question(row: Row, columns: Columns, where: str) -> Question:
    content = _content(_value(row, columns.input, "--input-key", where), columns.input, where)
    label = None
    if columns.label is not None:
        label = _value(row, columns.label, "--label-key", where)
    metadata = _metadata(row.fields.get(columns.metadata), columns.metadata, where)
    tools = _tools(row.fields.get(columns.tools), columns.tools, where)
    if tools:
        metadata = {**metadata, "tools": tools}
    return Question(content=content, label=label, metadata=metadata, tools=tools, where=where)


def _value(row: Row, key: str, flag: str, where: str) -> Any:
    if key not in row.fields:
        present = ", ".join(map(repr, row.fields)) or "none"
        raise DataError(f"{where} has no key {key!r}; its keys are: {present}; set {flag}")
    return row.fields[key]


def _content(value: Any, key: str, where: str) -> str | Sequence[Mapping[str, Any]]:
    if isinstance(value, str):
        _check_text(value, key, where)
        return value
    is_messages = isinstance(value, list) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in value
    )
    if not is_messages or not value:
        raise DataError(
            f"{where}: {key!r} must be a string or a list of messages like "
            f'{{"role": "user", "content": "..."}}, not {_kind(value)}'
        )
    _check_text(json.dumps(value, ensure_ascii=False, default=str), key, where)
    return value


def _check_text(text: str, key: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: {key!r} holds half of a surrogate pair, which no tokenizer takes"
        ) from None


def _metadata(value: Any, key: str, where: str) -> dict[str, Any]:
    if isinstance(value, str) and value.strip():
        value = _parsed(value, key, where)
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {key!r} must be an object, not {_kind(value)}")
    return dict(value)


def _tools(value: Any, key: str, where: str) -> list[Mapping[str, Any]] | None:
    if isinstance(value, str) and value.strip():
        value = _parsed(value, key, where)
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{where}: {key!r} must be a list of tools (or JSON of one), not {value!r}")
    return value


def _parsed(value: str, key: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {key!r} is a string that is not JSON ({error})") from None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, dict)) and not value:
        return "an empty " + type(value).__name__
    return "a " + type(value).__name__
