"""Writes problems like 47*36+8: worked ones that call the tool, and others with labels alone.

python examples/calculator/problems.py calculator/data
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = {"warmup": 4096, "train": 4096, "heldout": 64}


def main(folder: Path) -> None:
    """Writes a file for each data set."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = distinct_problems(random.Random(1))
    for name, size in SIZES.items():
        rows = (row_of(name, next(problems)) for _ in range(size))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def distinct_problems(draw: random.Random) -> Iterator[str]:
    """Problems without end, none twice."""
    seen: set[str] = set()
    while True:
        problem = f"{draw.randint(10, 99)}*{draw.randint(10, 99)}+{draw.randint(1, 9)}"
        if problem not in seen:
            seen.add(problem)
            yield problem


def row_of(name: str, problem: str) -> dict[str, Any]:
    """A row of the data set; `warmup` shows the call, the value and the answer."""
    first, _, rest = problem.partition("*")
    second, _, third = rest.partition("+")
    value = str(int(first) * int(second) + int(third))
    question = {"role": "user", "content": problem}
    if name == "warmup":
        worked = {"role": "assistant", "content": f"{problem}={value}\n{value}"}
        return {"messages": [question, worked]}
    return {"prompt": [question], "label": value}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
