"""The games and tools of the examples, without a model."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("47*36+8", "1700"),
        (" 2**10 ", "1024"),
        ("7//2", "3"),
        ("1/0", "error"),
        ("1//0", "error"),
        ("__import__('os')", "error"),
        ("(1).real", "error"),
        ("True+1", "error"),
        ("12+", "error"),
    ],
)
def test_the_calculator_does_arithmetic_and_nothing_else(text, value):
    assert module_at(EXAMPLES / "calculator" / "calculator.py").answer(text) == value


async def test_a_call_that_would_never_end_is_cut_off_and_the_next_one_answered():
    tool = module_at(EXAMPLES / "calculator" / "tool.py")
    world = tool.Calculator()
    assert await world.reply("6*7=") == "42\n"
    assert await world.reply("9**9**9**9=") == "error\n"
    assert await world.reply("6*7=") == "42\n"
    assert await world.reply("42") is None and world.answer == "42" and world.num_calls == 3
    tool.sandbox().close()


def test_labels_are_the_values_of_their_problems(tmp_path):
    problems = module_at(EXAMPLES / "calculator" / "problems.py")
    problems.main(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "heldout.jsonl").open()]
    assert len(rows) == problems.SIZES["heldout"]
    answer = module_at(EXAMPLES / "calculator" / "calculator.py").answer
    assert all(answer(row["prompt"][0]["content"]) == row["label"] for row in rows)


async def test_the_game_tells_higher_from_lower():
    game = module_at(EXAMPLES / "guess_number" / "game.py").Game(secret=6)
    assert [await game.reply(text) for text in ("3", "8", "x", "6")] == ["+", "-", "-", None]
    assert game.is_won and game.num_digits == 3
