"""The same run over Ray in every layout of two devices: numbers, and seconds of its parts.

    python benchmarks/layouts.py [--rollouts 4] [--only apart shared tensor] [--tiny] [--out FOLDER]

A random model of 47 million weights answers the quickstart's questions, rewarded at random; its
first loss and its log-probs (engine against trainer) say whether layouts agree. Times are of the
last step, when kernels are compiled. With `--tiny` on the CPU, for a walk through.
"""

import argparse
import json
import shutil
from pathlib import Path

import w1
from algorithms import ADAM, ROOT, perform

LAYOUTS = {
    "apart": "--actor-num-gpus-per-node 1 --rollout-num-gpus 1",
    "shared": "--actor-num-gpus-per-node 2 --colocate",
    "tensor": "--actor-num-gpus-per-node 2 --colocate --rollout-num-gpus-per-engine 2"
    " --tensor-model-parallel-size 2 --sequence-parallel",
}
TASK = f"""
    --input-key prompt --label-key label --apply-chat-template --rollout-shuffle --rm-type random
    --n-samples-per-prompt 8 --rollout-max-response-len 24 --num-steps-per-rollout 2 --lr 2e-5
    --use-dynamic-batch-size --max-tokens-per-gpu 32768 --progress off {ADAM}
"""
SIZE = "--hidden-size 512 --ffn-hidden-size 2048 --num-layers 12 --num-heads 8 --num-key-heads 4"
COLUMNS = {
    "logprob_diff": "train/train_rollout_logprob_abs_diff",
    "sampling_s": "perf/rollout_time",
    "training_s": "perf/train_time",
    "update_s": "perf/update_weights_time",
    "of_it_checks_s": "perf/update_weights_check_time",
    "step_s": "perf/step_time",
}


def main() -> None:
    """Runs every layout and prints what it measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/layouts"))
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    options = parser.parse_args()
    here = options.folder
    shutil.rmtree(ROOT / here, ignore_errors=True)
    perform(f"examples/quickstart/problems.py --out {here}/data --digits 14", here)
    size = "--num-heads 4 --num-key-heads 2" if options.tiny else SIZE
    perform(
        f"examples/small_model.py --texts {here}/data/warmup.jsonl --out {here}/model {size}", here
    )
    task = f"--hf-checkpoint {here}/model --prompt-data {here}/data/train.jsonl {TASK}"
    task += "--rollout-batch-size 4 --device cpu" if options.tiny else "--rollout-batch-size 64"
    rows = []
    for name in options.only:
        run = here / name
        perform(
            f"train.py {task} {LAYOUTS[name]} --num-rollout {options.rollouts} --run-dir {run}", run
        )
        steps = [json.loads(line) for line in (ROOT / run / "metrics.jsonl").open()]
        last = {column: steps[-1].get(metric) for column, metric in COLUMNS.items()}
        rows.append({"layout": name, "first_loss": steps[0]["train/loss"], **last})
        print(json.dumps(rows[-1]), flush=True)  # what is cut off later leaves this
    w1.report("layouts", rows, options.out, rollouts=options.rollouts, flags=LAYOUTS)


if __name__ == "__main__":
    main()
