"""In turns, one rollout ahead, and without end: idle shares and steps a second of each.

    python benchmarks/async_cpu.py [--rollouts 12] [--seed 1] [--folder runs/async]

On the quickstart's task and model, on this machine's CPU; the same number of samples in every mode,
and the same correction (`--use-tis`). Prints a table and one JSON line. For GPUs give the launch:

    python benchmarks/async_cpu.py --rollouts 8 \\
        --task "--hf-checkpoint ... --prompt-data ... and all other flags but the places" \\
        --together "--actor-num-gpus-per-node 4 --colocate" \\
        --apart "--actor-num-gpus-per-node 2 --rollout-num-gpus 2"
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from algorithms import ONE_STEP, ROOT, TASK, perform, prepare

MODES = {
    "in turns": ("train.py", ""),
    "one rollout ahead": ("train_async.py", ""),
    "without end": ("train_async.py", "--asynchronous full --max-staleness 2"),
}
NUM_WARM = 2
"""Steps at the start that are not counted: the first rollout has nothing to overlap with."""

Row = Mapping[str, Any]


def main() -> None:
    """Runs every mode and prints what it measured."""
    options = parse_options()
    task = options.task
    if task is None:
        prepare(options.folder, options.seed)
        here = options.folder / f"seed{options.seed}"
        task = (
            f"--hf-checkpoint {here}/warm_hf --prompt-data {here}/data/train.jsonl"
            f" --eval-prompt-data heldout {here}/data/heldout.jsonl --seed {options.seed}"
            f" --rollout-seed {options.seed} {TASK.replace('--colocate', '')} {ONE_STEP}"
        )
    rows = []
    for name, (script, flags) in MODES.items():
        run = options.folder / f"seed{options.seed}" / name.replace(" ", "-")
        place = options.together if script == "train.py" else options.apart
        began_s = time.monotonic()
        perform(
            f"{script} {task} {place} {flags} --use-tis --num-rollout {options.rollouts}"
            f" --run-dir {run}",
            run,
        )
        rows.append({"mode": name, "run_s": time.monotonic() - began_s, **measured(read(run))})
    show(rows)
    line = {
        "benchmark": "async",
        "rollouts": options.rollouts,
        "rows": rows,
        "flags": [options.together, options.apart],
        "load_average": os.getloadavg()[1],
        "machine": f"{platform.machine()}, {platform.processor() or 'cpu'}",
        "commit": commit(),
    }
    print(json.dumps(line))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/async"))
    parser.add_argument("--task", help="flags of another launch in place of the quickstart's task")
    parser.add_argument("--together", default="", help="where train.py runs")
    parser.add_argument("--apart", default="", help="where train_async.py runs")
    return parser.parse_args()


def read(run: Path) -> list[Row]:
    """The rows of a run folder."""
    lines = (ROOT / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def measured(rows: Sequence[Row]) -> dict[str, Any]:
    """Steps a second, the share of time that each half idles, staleness, and what was learned."""
    steps = [row for row in rows if "perf/train_time" in row]
    warm = steps[NUM_WARM:]
    total_s = sum(row["perf/step_time"] for row in warm)
    learning_s = sum(row["perf/train_time"] for row in warm)
    sampling_s = sum(row.get("perf/sampling_time", row["perf/rollout_time"]) for row in warm)
    held_out = [row["eval/heldout"] for row in rows if row.get("eval/heldout") is not None]
    return {
        "steps_per_s": len(warm) / total_s,
        "trainer_idle": 1 - learning_s / total_s,
        "sampler_idle": max(0.0, 1 - sampling_s / total_s),
        "staleness_mean": fmean(row.get("rollout/staleness/mean", 0.0) for row in steps),
        "staleness_max": max(row.get("rollout/staleness/max", 0.0) for row in steps),
        "reward_first": fmean(row["rollout/raw_reward"] for row in steps[:3]),
        "reward_last": fmean(row["rollout/raw_reward"] for row in steps[-3:]),
        "held_out": held_out[-1] if held_out else None,
        "samples": sum(row["rollout/num_samples"] for row in steps),
    }


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    print(
        "| mode | steps/s | trainer idle | sampler idle | staleness mean, max | reward | held out |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        held_out = "-" if row["held_out"] is None else f"{row['held_out']:.3f}"
        print(
            f"| {row['mode']} | {row['steps_per_s']:.3f} | {row['trainer_idle']:.0%}"
            f" | {row['sampler_idle']:.0%} | {row['staleness_mean']:.2f},"
            f" {row['staleness_max']:.0f} | {row['reward_first']:.3f} to"
            f" {row['reward_last']:.3f} | {held_out} |"
        )


def commit() -> str:
    """The commit of the working folder, or nothing where there is no git."""
    try:
        words = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    main()
