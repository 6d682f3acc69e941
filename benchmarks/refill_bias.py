"""How refilling favours short answers, and what keeping by prompt order does about it.

    python benchmarks/refill_bias.py [--figure docs/figures/refill_bias.png]

A toy: prompts whose answers are 20 to 400 tokens long, a filter that keeps half of the groups
whatever their length, an engine that gives each sample a token a step. Without a bias the kept
answers are as long as all answers are. Shown by how many more prompts than needed are in flight.
"""

import argparse
import json
import random
from collections.abc import Sequence

import numpy as np

from tandem.rollout.rules import KEEP, Order, Round, Ruling

SHORTEST, LONGEST = 20, 400
WANTED, NUM_SAMPLES, NUM_ROUNDS = 32, 8, 200
FACTORS = (1.0, 1.5, 2.0, 3.0)
DROP = Ruling(reason="drop")


class Toy:
    """Prompts with a length of their own, around which their samples' lengths lie."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.lengths: list[int] = []
        self.rulings: list[Ruling] = []

    def start(self, count: int) -> range:
        """That many more prompts."""
        first = len(self.lengths)
        for _ in range(count):
            typical = self._random.uniform(SHORTEST, LONGEST)
            samples = [self._random.gauss(typical, typical / 5) for _ in range(NUM_SAMPLES)]
            self.lengths.append(int(max(1, *samples)))
            self.rulings.append(KEEP if self._random.random() < 0.5 else DROP)
        return range(first, len(self.lengths))


def play(order: Order, factor: float, seed: int) -> tuple[list[int], list[int], int]:
    """Lengths of the kept groups and of all that were started, and the steps of the round."""
    toy, rules = Toy(seed), Round(WANTED, order=order, filters=True)
    ends: dict[int, int] = {}
    step = 0
    while not rules.is_full:
        while rules.wants_more:
            started = toy.start(int(WANTED * factor))
            rules.start(started)
            ends |= {group: step + toy.lengths[group] for group in started}
        group = min(ends, key=lambda group: (ends[group], group))
        step = ends.pop(group)
        rules.finish(group)
        rules.rule(group, toy.rulings[group])
    return [toy.lengths[group] for group in rules.kept], toy.lengths, step


def measure() -> list[dict[str, float | str]]:
    """Mean length of kept answers relative to all, and steps, by order and prompts in flight."""
    rows: list[dict[str, float | str]] = []
    for order in ("finished", "prompts"):
        for factor in FACTORS:
            kept: list[int] = []
            started: list[int] = []
            steps = 0
            for seed in range(NUM_ROUNDS):
                of_kept, of_all, num_steps = play(order, factor, seed)
                kept += of_kept
                started += of_all
                steps += num_steps
            rows.append(
                {
                    "order": order,
                    "in_flight": factor,
                    "kept_over_all": round(float(np.mean(kept) / np.mean(started)), 3),
                    "steps": round(steps / NUM_ROUNDS),
                }
            )
    return rows


def draw(rows: Sequence[dict], path: str) -> None:
    """The figure of docs/rollout.md."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.2))
    for order, mark in (("finished", "o-"), ("prompts", "s-")):
        points = [(row["in_flight"], row["kept_over_all"]) for row in rows if row["order"] == order]
        axes.plot(*zip(*points, strict=True), mark, label=f"--dynamic-sampling-keeps {order}")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel("over-sampling batch size / rollout batch size")
    axes.set_ylabel("length of kept answers / of all")
    axes.set_ylim(0.5, 1.1)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", help="PNG to write")
    options = parser.parse_args()
    rows = measure()
    print(f"{'kept':<10}{'in flight':>10}{'length kept / all':>20}{'steps':>8}")
    for row in rows:
        print(
            f"{row['order']:<10}{row['in_flight']:>10}{row['kept_over_all']:>20}{row['steps']:>8}"
        )
    print(json.dumps({"benchmark": "refill_bias", "rows": rows}))
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
