"""Draws held-out accuracy of several quickstart runs and prints their table; needs matplotlib.

python examples/quickstart/curve.py quickstart runs/quickstart-2 --out docs/quickstart.png
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Distinct for colour-blind readers and in print (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def main() -> None:
    """Writes the picture and prints one line of Markdown for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders that run.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="PNG or SVG to write")
    options = parser.parse_args()
    summaries = [json.loads((one / "summary.json").read_text()) for one in options.folders]
    curves = [read_curve(one / "grpo" / "metrics.jsonl") for one in options.folders]
    draw(summaries, curves, options.out)
    print("| seed | greedy: before | after | sampled: before | after | training |")
    print("|---|---|---|---|---|---|")
    for one in summaries:
        print(
            f"| {one['seed']} | {one['greedy'][0]:.1%} | {one['greedy'][1]:.1%} "
            f"| {one['sampled'][0]:.1%} | {one['sampled'][1]:.1%} | {one['training_s']:.0f} s |"
        )


def read_curve(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Points `(rollout, value)` of the held-out accuracy and of the reward in training."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {"heldout": "eval/heldout", "training": "rollout/raw_reward"}
    return {
        name: [(row["step"], row[key]) for row in rows if key in row] for name, key in names.items()
    }


def draw(
    summaries: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, list[tuple[int, float]]]],
    out: Path,
) -> None:
    """Writes one line for each run, its reward in training faint behind it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for summary, curve, colour in zip(summaries, curves, COLOURS, strict=False):
        axes.plot(*zip(*curve["training"], strict=True), color=colour, alpha=0.25, linewidth=1)
        label = f"seed {summary['seed']}"
        axes.plot(*zip(*curve["heldout"], strict=True), "o-", color=colour, label=label)
    axes.set(xlabel="rollout", ylabel="accuracy, sampled", ylim=(0, 1))
    axes.set_title("Held-out problems (points) and training reward (faint)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={"Software": None} if out.suffix == ".png" else None)


if __name__ == "__main__":
    main()
