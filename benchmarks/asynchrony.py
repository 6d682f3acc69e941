"""In turns, one rollout ahead, and without end on the same devices: steps a second, idle shares.

    python benchmarks/asynchrony.py                          # this machine's CPU, one process
    python benchmarks/asynchrony.py --layers 12 --width 512 \\
        --together "--actor-num-gpus-per-node 2 --colocate" \\
        --apart "--actor-num-gpus-per-node 1 --rollout-num-gpus 1"        # two GPUs, over Ray

Without `--layers` it is the quickstart's task and its warm model: what is learned can be looked at.
With it, a random model of that size answers the same questions until it happens to stop, rewarded
at random: only speeds mean something. `--task FLAGS` takes another launch instead.

The same samples and corrections (`--use-tis`) in every mode. Prints a table and one JSON line. The
idle share of a half is the share of time in which it was not asked for anything; where nvidia-smi
is there, the share in which no kernel ran is told of every device, too.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from algorithms import ADAM, ONE_STEP, ROOT, TASK, perform, prepare

MODES = {
    "in turns": ("train.py", "together", ""),
    "in turns, apart": ("train.py", "apart", ""),
    "one rollout ahead": ("train_async.py", "apart", ""),
    "without end": ("train_async.py", "apart", "--asynchronous full --max-staleness 2"),
}
NUM_WARM = 2
"""Steps at the start that are not counted: kernels are built, and nothing overlaps with the first
rollout."""

BIG_TASK = f"""
    --input-key prompt --label-key label --apply-chat-template --rollout-shuffle --rm-type random
    --n-samples-per-prompt 8 --use-dynamic-batch-size {ADAM} --num-steps-per-rollout 1 --lr 1e-5
"""
DEVICES = "nvidia-smi --query-gpu=index,timestamp,utilization.gpu --format=csv,noheader,nounits"

Row = Mapping[str, Any]


def main() -> None:
    """Runs every mode and prints what it measured."""
    options = parse_options()
    task = options.task or (quickstart(options) if options.layers is None else big(options))
    rows = []
    for name in options.modes:
        script, place, flags = MODES[name]
        run = options.folder / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(ROOT / run, ignore_errors=True)
        began_s = time.monotonic()
        with watched_devices(run) as use:
            perform(
                f"{script} {task} {getattr(options, place)} {flags} --use-tis --progress off"
                f" --num-rollout {options.rollouts} --run-dir {run}",
                run,
            )
        found = measured(read(run), is_shared=place == "together")
        seconds = time.monotonic() - began_s
        devices = idle_devices(use, run, found["measured_s"])
        rows.append({"mode": name, "run_s": seconds, **found, "devices_idle": devices})
        print(json.dumps(rows[-1]), flush=True)  # what is cut off later leaves this
    show(rows)
    line = {
        "benchmark": "async",
        "rollouts": options.rollouts,
        "rows": rows,
        "flags": [options.together, options.apart],
        "layers": options.layers,
        "width": options.width,
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
    parser.add_argument("--modes", nargs="+", choices=MODES, help="some of them")
    parser.add_argument("--layers", type=int, help="of a random model, in place of the warm one")
    parser.add_argument("--width", type=int, default=512, help="of that model")
    parser.add_argument("--longest", type=int, default=512, help="tokens of its longest answer")
    parser.add_argument("--prompts", type=int, default=32, help="a rollout's, 8 samples each")
    parser.add_argument("--task", help="flags of another launch: all but the places and modes")
    parser.add_argument("--together", default="", help="where train.py runs")
    parser.add_argument("--apart", default="", help="where train_async.py runs")
    options = parser.parse_args()
    is_split = options.apart != options.together
    options.modes = options.modes or [name for name in MODES if is_split or "apart" not in name]
    return options


def quickstart(options: argparse.Namespace) -> str:
    """Flags of the quickstart's task, with a model that has seen worked answers."""
    prepare(options.folder, options.seed)
    here = options.folder / f"seed{options.seed}"
    return (
        f"--hf-checkpoint {here}/warm_hf --prompt-data {here}/data/train.jsonl"
        f" --eval-prompt-data heldout {here}/data/heldout.jsonl --seed {options.seed}"
        f" --rollout-seed {options.seed} {TASK.replace('--colocate', '')} {ONE_STEP}"
    )


def big(options: argparse.Namespace) -> str:
    """Flags of the same questions to a random model, whose answers are of very different length."""
    here, width = options.folder / f"random{options.layers}x{options.width}", options.width
    data, model = here / "data", here / "model"
    if not (ROOT / model).is_dir():
        perform(f"examples/quickstart/problems.py --out {data} --seed {options.seed}", here)
        perform(
            f"examples/small_model.py --texts {data}/warmup.jsonl --out {model}"
            f" --num-layers {options.layers} --hidden-size {width} --ffn-hidden-size {3 * width}"
            f" --num-heads {max(2, width // 128)} --num-key-heads 2 --head-size {min(128, width)}"
            f" --seed {options.seed}",
            here,
        )
    return (
        f"--hf-checkpoint {model} --prompt-data {data}/train.jsonl --seed {options.seed}"
        f" --rollout-seed {options.seed} --rollout-batch-size {options.prompts}"
        f" --rollout-max-response-len {options.longest} --max-tokens-per-gpu"
        f" {max(2048, 32 * options.longest)} {BIG_TASK}"
    )


@contextmanager
def watched_devices(run: Path) -> Iterator[Path | None]:
    """A file to which the use of all devices is written meanwhile; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        yield None
        return
    (ROOT / run).mkdir(parents=True, exist_ok=True)
    path = ROOT / run / "devices.csv"
    with path.open("w") as file:
        watching = subprocess.Popen([*DEVICES.split(), "-lms", "100"], stdout=file)
        try:
            yield path
        finally:
            watching.terminate()
            watching.wait()


def idle_devices(path: Path | None, run: Path, seconds: float) -> list[float]:
    """Of each device, the share of the last so many seconds of steps in which no kernel ran."""
    if path is None:
        return []
    end_s = (ROOT / run / "metrics.jsonl").stat().st_mtime
    use: dict[str, list[float]] = {}
    for row in csv.reader(path.read_text().splitlines(), skipinitialspace=True):
        if len(row) == 3 and row[2].isdigit():
            now_s = datetime.strptime(row[1], "%Y/%m/%d %H:%M:%S.%f").timestamp()
            if end_s - seconds <= now_s <= end_s:
                use.setdefault(row[0], []).append(float(row[2]))
    return [1 - fmean(shares) / 100 for shares in use.values()]


def read(run: Path) -> list[Row]:
    """The rows of a run folder."""
    lines = (ROOT / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def measured(rows: Sequence[Row], *, is_shared: bool) -> dict[str, Any]:
    """Steps a second, the share of time that each half idles, staleness, and what was learned.

    `is_shared`: each device does both, so it idles while neither goes on.
    """
    steps = [row for row in rows if "perf/train_time" in row]
    warm = steps[NUM_WARM:]
    total_s = sum(row["perf/step_time"] for row in warm)
    learning_s = sum(row["perf/train_time"] for row in warm)
    sampling_s = sum(row.get("perf/sampling_time", row["perf/rollout_time"]) for row in warm)
    held_out = [row["eval/heldout"] for row in rows if row.get("eval/heldout") is not None]
    shared_s = learning_s + sampling_s if is_shared else 0.0
    return {
        "measured_s": total_s,
        "steps_per_s": len(warm) / total_s,
        "tokens_per_s": sum(row["train/num_tokens"] for row in warm) / total_s,
        "learning_s": learning_s / len(warm),
        "sampling_s": sampling_s / len(warm),
        "trainer_idle": max(0.0, 1 - (shared_s or learning_s) / total_s),
        "sampler_idle": max(0.0, 1 - (shared_s or sampling_s) / total_s),
        "staleness_mean": fmean(row.get("rollout/staleness/mean", 0.0) for row in steps),
        "staleness_max": max(row.get("rollout/staleness/max", 0.0) for row in steps),
        "mixed": fmean(row.get("rollout/staleness/mixed", 0.0) for row in warm),
        "reward_first": fmean(row["rollout/raw_reward"] for row in steps[:3]),
        "reward_last": fmean(row["rollout/raw_reward"] for row in steps[-3:]),
        "held_out": held_out[-1] if held_out else None,
        "samples": sum(row["rollout/num_samples"] for row in steps),
    }


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    print(
        "| mode | steps/s | tokens/s | sampling, learning s | trainer idle | sampler idle"
        " | no kernel ran | staleness mean, max | of two versions | held out |"
    )
    print("|---" * 10 + "|")
    for row in rows:
        held_out = "-" if row["held_out"] is None else f"{row['held_out']:.3f}"
        devices = ", ".join(f"{share:.0%}" for share in row["devices_idle"]) or "-"
        print(
            f"| {row['mode']} | {row['steps_per_s']:.3f} | {row['tokens_per_s']:,.0f}"
            f" | {row['sampling_s']:.2f}, {row['learning_s']:.2f} | {row['trainer_idle']:.0%}"
            f" | {row['sampler_idle']:.0%} | {devices} | {row['staleness_mean']:.2f},"
            f" {row['staleness_max']:.0f} | {row['mixed']:.0%} | {held_out} |"
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
