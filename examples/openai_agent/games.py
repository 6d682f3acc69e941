"""Writes the games: secrets to train and evaluate on, and careless play for a warm-up.

python examples/openai_agent/games.py --out runs/agent/data
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from agent import HIGHEST, MAX_GUESSES, TASK, hint

NUM_WARMUP = 8192
NUM_TRAIN = 900


def main() -> None:
    """Writes warmup.jsonl, train.jsonl and secrets.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    games = ({"messages": careless_game(draw)} for _ in range(NUM_WARMUP))
    write(options.out / "warmup.jsonl", games)
    write(options.out / "train.jsonl", map(asked, draw.choices(range(1, HIGHEST + 1), k=NUM_TRAIN)))
    write(options.out / "secrets.jsonl", map(asked, range(1, HIGHEST + 1)))


def asked(secret: int) -> dict:
    """One row: the task, which is the same for every secret, and the secret as its label."""
    return {"prompt": [{"role": "user", "content": TASK}], "label": str(secret)}


def careless_game(draw: random.Random) -> list[dict]:
    """A game of somebody who listens to half of the hints and guesses anything else."""
    secret = draw.randint(1, HIGHEST)
    messages = [{"role": "user", "content": TASK}]
    low, high = 1, HIGHEST
    for number in range(MAX_GUESSES):
        guess = draw.randint(low, high) if draw.random() < 0.5 else draw.randint(1, HIGHEST)
        messages.append({"role": "assistant", "content": str(guess)})
        if guess == secret or number == MAX_GUESSES - 1:
            break
        messages.append({"role": "user", "content": hint(str(guess), secret)})
        if guess < secret:
            low = max(low, guess + 1)
        else:
            high = min(high, guess - 1)
    return messages


def write(path: Path, rows: Iterable[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
