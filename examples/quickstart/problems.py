"""Writes the quickstart's three data sets: sort the digits of a number, answer in a box.

    python examples/quickstart/problems.py --out quickstart/data --seed 1

`warmup.jsonl` shows worked answers (supervised), `train.jsonl` only has labels (reinforcement),
`heldout.jsonl` is never trained on. No number appears in two of them, or twice in one.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NUM_DIGITS = 6
# No zero: graders compare numbers, and a leading zero would make 012 equal to 12.
DIGITS = "123456789"
SIZES = {"warmup": 8192, "train": 8192, "heldout": 256}


def main() -> None:
    """Writes one file for each data set and says how many rows each holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--digits", type=int, default=NUM_DIGITS, help="of each number")
    options = parser.parse_args()
    for name, rows in datasets(options.seed, options.digits).items():
        write_rows(options.out / f"{name}.jsonl", rows)
        print(f"{options.out / name}.jsonl: {len(rows)} rows")


def datasets(seed: int, digits: int = NUM_DIGITS) -> dict[str, list[dict[str, Any]]]:
    """The rows of each data set; the same seed gives the same rows."""
    numbers = distinct_numbers(sum(SIZES.values()), seed, digits)
    starts = [sum(list(SIZES.values())[:i]) for i in range(len(SIZES))]
    chosen = {
        name: numbers[start : start + size]
        for start, (name, size) in zip(starts, SIZES.items(), strict=True)
    }
    return {
        name: [worked_row(n) if name == "warmup" else problem_row(n) for n in part]
        for name, part in chosen.items()
    }


def distinct_numbers(count: int, seed: int, digits: int) -> list[str]:
    """`count` different numbers in random order, by rejection of what was drawn before."""
    draw = random.Random(seed)
    numbers: dict[str, None] = {}
    while len(numbers) < count:
        numbers["".join(draw.choices(DIGITS, k=digits))] = None
    return list(numbers)


def problem_row(number: str) -> dict[str, Any]:
    """A row for reinforcement and evaluation: the question and the label, nothing else."""
    return {"prompt": [question(number)], "label": "".join(sorted(number))}


def worked_row(number: str) -> dict[str, Any]:
    """A row for supervised steps: the question and the answer as a conversation."""
    answer = f"\\boxed{{{''.join(sorted(number))}}}"
    return {"messages": [question(number), {"role": "assistant", "content": answer}]}


def question(number: str) -> dict[str, str]:
    """The user's turn that asks for one number to be sorted."""
    return {"role": "user", "content": f"Sort {number}"}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; the folder is made where it is absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
