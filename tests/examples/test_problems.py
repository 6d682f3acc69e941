"""The quickstart's problems: disjoint, repeatable, and graded as they are meant."""

import importlib.util
import io
import json
from pathlib import Path

import pytest

from tandem.rewards.command import run_grade

ROOT = Path(__file__).resolve().parents[2]


def load_example(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problems():
    return load_example("examples/quickstart/problems.py")


def asked(row):
    return (row.get("prompt") or row["messages"])[0]["content"]


def test_no_number_is_in_two_sets_or_twice_in_one(problems):
    rows = [row for part in problems.datasets(1).values() for row in part]
    assert len({asked(row) for row in rows}) == len(rows)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(problems):
    assert problems.datasets(1) == problems.datasets(1)
    assert problems.datasets(1) != problems.datasets(2)


def test_sets_hold_what_their_stage_reads(problems):
    parts = problems.datasets(1)
    assert {name: len(rows) for name, rows in parts.items()} == problems.SIZES
    assert all(set(row) == {"messages"} for row in parts["warmup"])
    assert all(set(row) == {"prompt", "label"} for row in parts["train"] + parts["heldout"])


def test_a_label_is_the_sorted_number_and_no_zero_is_in_it(problems):
    row = problems.problem_row("583219")
    assert row["label"] == "123589"
    assert "583219" in asked(row)
    labels = [row["label"] for row in problems.datasets(1)["heldout"]]
    assert all("0" not in label and len(label) == problems.NUM_DIGITS for label in labels)


def test_the_grader_takes_the_answer_that_is_taught_and_no_other_order(problems):
    number = "583219"
    taught = problems.worked_row(number)["messages"][1]["content"]
    label = problems.problem_row(number)["label"]
    cases = [taught, f"\\boxed{{{number}}}", label, "\\boxed{123589", "\\boxed{12358}"]
    asked_lines = [json.dumps({"response": answer, "label": label}) for answer in cases]
    verdicts = io.StringIO()
    run_grade("math", asked_lines, verdicts)
    rewards = [json.loads(line)["reward"] for line in verdicts.getvalue().splitlines()]
    assert rewards == [1, 0, 0, 0, 0]
