"""Every algorithm on the quickstart's task: same model, same sampled tokens, several seeds.

    python benchmarks/algorithms.py [--seeds 1 2 3] [--only grpo ppo] [--rollouts 25]

Prints one Markdown table and one JSON line for each algorithm: held-out accuracy of answers sampled
at temperature 1, before and after. Each run is a launch of `train.py`; a finished one is kept.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PLACE = "--actor-num-nodes 1 --actor-num-gpus-per-node 1 --colocate --progress off"
ADAM = "--adam-beta1 0.9 --adam-beta2 0.98 --weight-decay 0.1 --lr-decay-style constant"
ROWS = "--use-dynamic-batch-size --max-tokens-per-gpu 4096"
WARMUP = f"""
    --rollout-function-path slime.rollout.sft_rollout.generate_rollout --loss-type sft_loss
    --calculate-per-token-loss --input-key messages --num-rollout 45 --rollout-batch-size 128
    --global-batch-size 128 --rollout-shuffle --lr 2e-3 --lr-warmup-iters 10 --save-interval 45
    {ROWS} {ADAM} {PLACE}
"""
TASK = f"""
    --input-key prompt --label-key label --apply-chat-template --rollout-shuffle --rm-type math
    --rollout-batch-size 32 --n-samples-per-prompt 8 --rollout-max-response-len 16
    --n-samples-per-eval-prompt 2 --eval-interval 1000 {ROWS} {ADAM} {PLACE}
"""
ONE_STEP = "--num-steps-per-rollout 1 --lr 3e-4 --lr-warmup-iters 5 --eps-clip-high 0.28"
TWO_STEPS = "--num-steps-per-rollout 2 --lr 2e-4 --lr-warmup-iters 10 --eps-clip-high 0.28"
WHITE = "--normalize-advantages"

ALGORITHMS = {
    "grpo": ONE_STEP,
    "grpo, two steps": TWO_STEPS,
    "grpo, KL loss": f"{ONE_STEP} --use-kl-loss --kl-loss-coef 0.01 --kl-loss-type low_var_kl",
    "Dr. GRPO": f"{ONE_STEP} --disable-grpo-std-normalization --calculate-per-token-loss",
    "DAPO": f"{TWO_STEPS} --calculate-per-token-loss --overlong-buffer-len 3",
    "gspo, two steps": "--num-steps-per-rollout 2 --lr 2e-4 --lr-warmup-iters 10 "
    "--advantage-estimator gspo --eps-clip 0.02 --eps-clip-high 0.03",
    "cispo, two steps": "--num-steps-per-rollout 2 --lr 2e-4 --lr-warmup-iters 10 "
    "--advantage-estimator cispo --eps-clip 1 --eps-clip-high 2",
    "rloo": f"{ONE_STEP} --advantage-estimator rloo",
    "reinforce++": f"{ONE_STEP} {WHITE} --advantage-estimator reinforce_plus_plus",
    "reinforce++ baseline": f"{ONE_STEP} {WHITE} "
    "--advantage-estimator reinforce_plus_plus_baseline",
    "ppo": f"{ONE_STEP} {WHITE} --advantage-estimator ppo --critic-lr 1e-3 --lambd 0.95 "
    "--num-critic-only-steps 3",
    "grpo + TIS": f"{TWO_STEPS} --use-tis",
    "grpo + MIS": f"{TWO_STEPS} --use-tis --tis-function mis --tis-level geometric --tis-mode mask",
    "grpo + OPSM": f"{TWO_STEPS} --use-opsm --opsm-delta 1e-3",
    "grpo, LoRA rank 16": "--num-steps-per-rollout 1 --lr 3e-3 --lr-warmup-iters 5 "
    "--eps-clip-high 0.28 --lora-rank 16 --lora-alpha 16",
    "distillation": f"{ONE_STEP} --use-opd --opd-type megatron --opd-teacher-load {{teacher}} "
    "--custom-reward-post-process-path tandem.algo.teacher.teacher_alone",
}


def main() -> int:
    """0 when every run ended well."""
    options = parse_options()
    names = options.only or list(ALGORITHMS)
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda seed: prepare(options.folder, seed), options.seeds))
        # a teacher is what GRPO made of the same model
        jobs = [(name, seed) for name in sorted(names, key="distillation".__eq__) for seed in
                options.seeds]  # fmt: skip
        list(pool.map(lambda job: learn(options, *job), jobs))
    print("| | before | after, by seed | mean after | sampled tokens | seconds a run |")
    print("|---|---|---|---|---|---|")
    for name in names:
        show(name, [result(options.folder, name, seed) for seed in options.seeds])
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=list(ALGORITHMS), help="some of them")
    parser.add_argument("--rollouts", type=int, default=25)
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs/algorithms"))
    return parser.parse_args()


def prepare(folder: Path, seed: int) -> None:
    """Problems and a model that has seen worked answers, once for each seed."""
    here = folder / f"seed{seed}"
    if (here / "warm_hf").is_dir():
        return
    data, base, warm = here / "data", here / "base", here / "warm"
    perform(f"examples/quickstart/problems.py --out {data} --seed {seed}", here)
    words = f"--texts {data}/warmup.jsonl --out {base} --seed {seed}"
    perform(f"examples/small_model.py {words}", here)
    perform(
        f"train.py --hf-checkpoint {base} --load {warm} --save {warm} --seed {seed}"
        f" --rollout-seed {seed} --prompt-data {data}/warmup.jsonl --loss-mask-type qwen {WARMUP}",
        here,
    )
    perform(
        f"tools/convert_torch_dist_to_hf.py --input-dir {warm}/iter_0000044"
        f" --output-dir {here}/warm_hf --origin-hf-dir {base}",
        here,
    )


def learn(options: argparse.Namespace, name: str, seed: int) -> None:
    """One run; its folder ends with the seconds that it took."""
    here = options.folder / f"seed{seed}"
    run = run_folder(options.folder, name, seed)
    if (ROOT / run / "seconds").exists():
        return
    flags = ALGORITHMS[name].format(teacher=run_folder(options.folder, "grpo", seed))
    began = time.monotonic()
    perform(
        f"train.py --hf-checkpoint {here}/warm_hf --run-dir {run} --save {run}"
        f" --prompt-data {here}/data/train.jsonl --eval-prompt-data heldout"
        f" {here}/data/heldout.jsonl --num-rollout {options.rollouts} --seed {seed}"
        f" --rollout-seed {seed} --save-interval {options.rollouts} {TASK} {flags}",
        run,
    )
    (ROOT / run / "seconds").write_text(f"{time.monotonic() - began:.0f}")


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """Where a run writes."""
    return folder / f"seed{seed}" / "".join(c if c.isalnum() else "-" for c in name)


def perform(command: str, folder: Path) -> None:
    """Runs one of our programs from the project's root; its output goes to `folder/log.txt`."""
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with (ROOT / folder / "log.txt").open("a") as log:
        words = [sys.executable, *shlex.split(command)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit(f"{command}\nended with {done.returncode}; see {folder}/log.txt")


def result(folder: Path, name: str, seed: int) -> dict[str, float]:
    """Accuracy before and after, and what it cost."""
    run = ROOT / run_folder(folder, name, seed)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    accuracy = [row["eval/heldout"] for row in rows if "eval/heldout" in row]
    tokens = sum(row.get("rollout/num_tokens", row.get("train/num_tokens", 0)) for row in rows)
    seconds = float((run / "seconds").read_text())
    return {"before": accuracy[0], "after": accuracy[-1], "tokens": tokens, "seconds": seconds}


def show(name: str, found: Sequence[dict[str, float]]) -> None:
    """A row of the table, and the same as JSON behind it on standard error."""
    before, after = ([one[key] for one in found] for key in ("before", "after"))
    tokens, seconds = (statistics.fmean(one[key] for one in found) for key in ("tokens", "seconds"))
    each = ", ".join(f"{value:.1%}" for value in after)
    print(
        f"| {name} | {statistics.fmean(before):.1%} | {each} | {statistics.fmean(after):.1%} "
        f"| {tokens:,.0f} | {seconds:.0f} |"
    )
    print(json.dumps({"algorithm": name, "runs": list(found)}), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
