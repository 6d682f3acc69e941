"""Trains a small model on this machine and shows that it got better; `make quickstart` runs it.

Every step is a command of its own, printed before it runs and kept in `quickstart/commands.sh`:
nothing here does what a launch script of your own could not do.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = ".made-by-quickstart"

PROBLEMS = "examples/quickstart/problems.py"
SMALL_MODEL = "examples/small_model.py"
TO_TORCH_DIST = "tools/convert_hf_to_torch_dist.py"
TO_HUGGING_FACE = "tools/convert_torch_dist_to_hf.py"

NUM_WARMUP, NUM_ROLLOUT = 45, 100

# --hf-checkpoint must be this shape; a flag that differs is refused.
MODEL_ARGS = """
    --swiglu --num-layers 2 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4
    --group-query-attention --num-query-groups 2 --kv-channels 32 --qk-layernorm
    --use-rotary-position-embeddings --rotary-base 10000 --disable-bias-linear
    --normalization RMSNorm --norm-epsilon 1e-6
"""
# A prompt is 16 tokens, an answer 10.
BATCH_ARGS = "--use-dynamic-batch-size --max-tokens-per-gpu 4096 --balance-data"
# Adam forgets quickly (0.98), as a run of a hundred steps wants it.
ADAM_ARGS = "--optimizer adam --adam-beta1 0.9 --adam-beta2 0.98 --weight-decay 0.1"
PLACE_ARGS = "--actor-num-nodes 1 --actor-num-gpus-per-node 1 --colocate"

WARMUP_ARGS = f"""
    --rollout-function-path slime.rollout.sft_rollout.generate_rollout
    --loss-type sft_loss --loss-mask-type qwen --calculate-per-token-loss
    --disable-compute-advantages-and-returns
    --input-key messages --num-rollout {NUM_WARMUP} --rollout-batch-size 128
    --global-batch-size 128 --rollout-shuffle
    --lr 2e-3 --lr-decay-style constant --lr-warmup-iters 10
"""
ROLLOUT_ARGS = f"""
    --input-key prompt --label-key label --apply-chat-template --rollout-shuffle --rm-type math
    --num-rollout {NUM_ROLLOUT} --rollout-batch-size 64 --n-samples-per-prompt 8
    --rollout-max-response-len 12 --rollout-temperature 1.0 --num-steps-per-rollout 2
"""
# Without its warm-up the same learning rate can ruin the policy within ten steps.
GRPO_ARGS = """
    --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28
    --use-kl-loss --kl-loss-coef 0.00 --kl-loss-type low_var_kl --entropy-coef 0.00
    --lr 5e-4 --lr-decay-style linear --lr-warmup-iters 10
"""
IN_RUN_EVAL_ARGS = "--eval-interval 20 --n-samples-per-eval-prompt 4"
EVAL_ARGS = """
    --input-key prompt --label-key label --apply-chat-template --rm-type math
    --rollout-batch-size 1 --rollout-max-response-len 12 --eval-temperature 0
"""


def main() -> int:
    """Runs every step in order; 0, or the status of the step that failed."""
    options = parse_options()
    folder = options.folder
    clear(folder)
    began = time.monotonic()
    learning_s = 0.0
    for title, words in steps(folder, options.seed):
        status, seconds = perform(title, words, folder, options.threads)
        if status:
            print(f"\nquickstart: this step ended with status {status}; nothing after it ran")
            return status
        learning_s += seconds if "train.py" in words else 0.0
    print(last_words(folder, measure(folder, options.seed, learning_s, time.monotonic() - began)))
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="problems, weights and sampling")
    parser.add_argument("--folder", type=Path, default=Path("quickstart"), help="all output")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; 2 help on an idle machine, hurt on a busy"
    )
    options = parser.parse_args()
    options.folder = Path(os.path.relpath(options.folder.resolve(), ROOT))
    return options


def clear(folder: Path) -> None:
    """Makes the folder anew; one that this script did not make is left alone."""
    path = ROOT / folder
    if path.is_dir() and any(path.iterdir()) and not (path / MARK).exists():
        sys.exit(f"quickstart: {folder} holds files of something else; choose another --folder")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    (path / MARK).touch()


def steps(folder: Path, seed: int) -> list[tuple[str, list[str]]]:
    """Title and command of each step; a command is `tandem ...` or a Python file."""
    data, base, warm, grpo = folder / "data", folder / "base", folder / "warmup", folder / "grpo"
    seeds = f"--seed {seed} --rollout-seed {seed}"
    sets = f"--eval-prompt-data heldout {data}/heldout.jsonl"
    shared = f"{BATCH_ARGS} {ADAM_ARGS} {PLACE_ARGS} {seeds}"
    commands = {
        "Problems: sort six digits": f"{PROBLEMS} --out {data} --seed {seed}",
        "A model from nothing: tokenizer and random weights": (
            f"{SMALL_MODEL} --texts {data}/warmup.jsonl --out {base} --seed {seed}"
        ),
        "Its weights as the trainer's checkpoint": (
            f"{TO_TORCH_DIST} {MODEL_ARGS} --hf-checkpoint {base} --save {base}_torch_dist"
        ),
        f"Warm-up: {NUM_WARMUP} supervised steps on worked answers": (
            f"train.py {MODEL_ARGS} --hf-checkpoint {base} --ref-load {base}_torch_dist"
            f" --load {warm} --save {warm} --save-interval {NUM_WARMUP}"
            f" --prompt-data {data}/warmup.jsonl {WARMUP_ARGS} {shared}"
        ),
        "What the warm-up gave, as a Hugging Face folder": exported(warm, NUM_WARMUP, base),
        "Held-out problems before": evaluated(folder, "before", f"{warm}_hf", sets, seeds),
        f"Reinforcement: {NUM_ROLLOUT} rollouts of GRPO": (
            f"train.py {MODEL_ARGS} --hf-checkpoint {warm}_hf --ref-load {warm}"
            f" --load {grpo} --save {grpo} --save-interval 50"
            f" --prompt-data {data}/train.jsonl {ROLLOUT_ARGS} {sets} {IN_RUN_EVAL_ARGS}"
            f" {GRPO_ARGS} {shared}"
        ),
        "What GRPO gave, as a Hugging Face folder": exported(grpo, NUM_ROLLOUT, base),
        "Held-out problems after": evaluated(folder, "after", f"{grpo}_hf", sets, seeds),
    }
    return [(title, shlex.split(command)) for title, command in commands.items()]


def exported(checkpoint: Path, num_rollout: int, origin: Path) -> str:
    """The command that writes a checkpoint's last iteration in Hugging Face form, beside it."""
    return (
        f"{TO_HUGGING_FACE} --input-dir {checkpoint}/iter_{num_rollout - 1:07d}"
        f" --output-dir {checkpoint}_hf --origin-hf-dir {origin}"
    )


def evaluated(folder: Path, name: str, model: str, sets: str, seeds: str) -> str:
    """The command that grades the most probable answer to every held-out problem."""
    return (
        f"tandem eval --hf-checkpoint {model} {sets} {EVAL_ARGS} {PLACE_ARGS} {seeds}"
        f" --run-dir {folder}/eval-{name}"
    )


def perform(title: str, words: Sequence[str], folder: Path, num_threads: int) -> tuple[int, float]:
    """Prints, keeps and runs one command from the project's root; its exit status and seconds."""
    command = with_program(words)
    shown = f"OMP_NUM_THREADS={num_threads} " + " \\\n    ".join(flag_groups(command))
    print(f"\n== {title}\n{shown}\n", flush=True)
    with (ROOT / folder / "commands.sh").open("a", encoding="utf-8") as script:
        script.write(f"# {title}\n{shown}\n\n")
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    return done.returncode, time.monotonic() - began


def with_program(words: Sequence[str]) -> list[str]:
    """The command with the interpreter that runs this, or the `tandem` that is installed by it."""
    bin_folder = Path(sys.executable).parent
    if bin_folder.is_relative_to(ROOT):
        bin_folder = bin_folder.relative_to(ROOT)
    if words[0] == "tandem":
        return [str(bin_folder / "tandem"), *words[1:]]
    return [str(bin_folder / Path(sys.executable).name), *words]


def flag_groups(words: Sequence[str], width: int = 90) -> list[str]:
    """The command as lines of at most `width`, a flag on one line with its values."""
    pieces: list[str] = []
    for word in map(shlex.quote, words):
        if word.startswith("--") or not pieces:
            pieces.append(word)
        else:
            pieces[-1] += f" {word}"
    lines = pieces[:1]
    for piece in pieces[1:]:
        if len(lines[-1]) + 1 + len(piece) <= width:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return lines


def measure(folder: Path, seed: int, training_s: float, all_s: float) -> dict[str, Any]:
    """Accuracy before and after, and the time; kept in `summary.json` too."""
    sampled = evaluations(folder / "grpo")
    measured = {
        "seed": seed,
        "greedy": [evaluations(folder / f"eval-{name}")[-1] for name in ("before", "after")],
        "sampled": [sampled[0], sampled[-1]],
        "training_s": round(training_s, 1),
        "all_s": round(all_s, 1),
    }
    (ROOT / folder / "summary.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")
    return measured


def last_words(folder: Path, measured: Mapping[str, Any]) -> str:
    """Accuracy before and after as a table, and where to look."""
    greedy, sampled = measured["greedy"], measured["sampled"]
    return f"""
{"held-out accuracy":<28}{"before":>8}{"after":>8}
{"most probable answer":<28}{greedy[0]:>8.1%}{greedy[1]:>8.1%}
{"sampled at temperature 1":<28}{sampled[0]:>8.1%}{sampled[1]:>8.1%}

training took {measured["training_s"]:.0f} s, everything {measured["all_s"]:.0f} s

where to look next:
  {folder}/grpo/report.md      the run in words, with reward.png beside it
  {folder}/grpo/metrics.jsonl  every number of every step
  {folder}/grpo/samples.jsonl  what the model wrote, and its rewards
  {folder}/grpo_hf/            the trained model, a Hugging Face folder
  {folder}/commands.sh         the commands above, to change and run again
  docs/quickstart.md           what happened, step by step"""


def evaluations(run: Path) -> list[float]:
    """The mean reward of the held-out set at every evaluation of a run, in order."""
    with (ROOT / run / "metrics.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["eval/heldout"] for row in rows if "eval/heldout" in row]


if __name__ == "__main__":
    sys.exit(main())
