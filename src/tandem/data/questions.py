"""Questions: what the columns of a row mean."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem.config import DataConfig, EvalSet
from tandem.data.read import Row
from tandem.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What one row asks. `where` names file and line; tools are in `metadata["tools"]` too."""

    content: str | Sequence[Mapping[str, Any]]
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    where: str = ""


def questions_of(
    rows: Sequence[Row], keys: DataConfig | EvalSet, *, skip_bad_lines: bool = False
) -> tuple[Question, ...]:
    """The questions of rows, from the columns that the settings name; a label only if they do.

    A row without a key that was asked for, or with a value of the wrong kind, raises DataError
    with file and line; under `skip_bad_lines` it is skipped, unless every row is like that.
    """
    questions: list[Question] = []
    first_fault: DataError | None = None
    for row in rows:
        try:
            questions.append(_question(row, keys))
        except DataError as fault:
            if not skip_bad_lines:
                raise
            first_fault = first_fault or fault
    if first_fault is not None:
        if not questions:
            raise first_fault
        num_skipped = len(rows) - len(questions)
        log.warning("%d rows were skipped; the first: %s", num_skipped, first_fault)
    return tuple(questions)


def _question(row: Row, keys: DataConfig | EvalSet) -> Question:
    content = _content(_value(row, keys.input_key, "--input-key"), keys.input_key, row.where)
    label = None
    if keys.label_key is not None:
        label = _value(row, keys.label_key, "--label-key")
    metadata = _metadata(row, keys.metadata_key)
    tools = _tools(row, keys.tool_key)
    if tools:
        metadata = {**metadata, "tools": tools}
    return Question(content=content, label=label, metadata=metadata, tools=tools, where=row.where)


def _value(row: Row, key: str, flag: str) -> Any:
    if key not in row.fields:
        present = ", ".join(map(repr, row.fields)) or "none"
        raise DataError(f"{row.where} has no key {key!r}; its keys are: {present}; set {flag}")
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


def _metadata(row: Row, key: str) -> dict[str, Any]:
    value = _parsed(row, key) or {}
    if not isinstance(value, Mapping):
        raise DataError(f"{row.where}: {key!r} must be an object, not {_kind(value)}")
    return dict(value)


def _tools(row: Row, key: str) -> list[Mapping[str, Any]] | None:
    value = _parsed(row, key) or None
    is_list = isinstance(value, list) and all(isinstance(tool, Mapping) for tool in value)
    if value is not None and not is_list:
        raise DataError(
            f"{row.where}: {key!r} must be a list of tools (or JSON of one), not {value!r}"
        )
    return value


def _parsed(row: Row, key: str) -> Any:
    """The value under a key, read where it is JSON in a string."""
    value = row.fields.get(key)
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{row.where}: {key!r} is a string that is not JSON ({error})") from None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, dict)) and not value:
        return "an empty " + type(value).__name__
    return "a " + type(value).__name__
