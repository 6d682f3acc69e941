"""The questions that examples/math carries."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "examples" / "math" / "data"


def rows_of(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 1024), ("aime-2024.jsonl", 30)])
def test_every_row_has_a_question_and_a_label(name, count):
    rows = rows_of(name)
    assert len(rows) == count
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert "\\boxed{}" in row["prompt"][0]["content"]
        assert isinstance(row["label"], str) and row["label"]


def test_no_evaluation_question_is_trained_on():
    trained = {row["prompt"][0]["content"] for row in rows_of("train.jsonl")}
    assert len(trained) == 1024
    assert not trained & {row["prompt"][0]["content"] for row in rows_of("aime-2024.jsonl")}


def test_both_sources_have_the_same_share():
    sources = [row["source"] for row in rows_of("train.jsonl")]
    assert sources.count("gsm8k") == sources.count("math") == 512
