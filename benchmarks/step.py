"""The whole step on W1, as a user runs it: `train.py` with random weights of Qwen3-4B's shape.

    python benchmarks/step.py [--out FOLDER] [--tiny] [--steps 3] [-- more flags of train.py]

Makes a model folder (config and tokenizer, no weights) and prompts of exactly 256 tokens, runs
train.py on them, and prints where each second of the last step went, and its ratio to the floor:
every weight, key and value read once per token, and the model's operations at the matmul rate.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import w1

ROOT = Path(__file__).resolve().parents[1]
SPANS = {
    "sampling and reward": "perf/rollout_time",
    "annotate": "perf/annotate_time",
    "advantages": "perf/advantage_time",
    "packing": "perf/data_preprocess_time",
    "forward and backward": "perf/forward_backward_time",
    "optimizer": "perf/optimizer_time",
    "publish": "perf/update_weights_time",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--row-tokens", type=int, default=10240)
    parser.add_argument("more", nargs="*", help="flags for train.py, after --")
    options = parser.parse_args()
    shape, load = w1.QWEN3_4B, w1.Load()
    if options.tiny:
        shape, load = replace(w1.TINY, max_positions=128), w1.Load(4, 2, 16, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", shape)
        make_prompts(folder / "prompts.jsonl", shape, load, options.steps)
        run(folder, load, options)
        rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    floor_s = w1.sampling_floor_s(shape, load) + w1.training_floor_s(shape, load)
    table = [timeline(row, floor_s) for row in rows]
    flags = " ".join(options.more)
    w1.report(
        "step", table, options.out, floor_s=floor_s, row_tokens=options.row_tokens, flags=flags
    )


def run(folder: Path, load: w1.Load, options: argparse.Namespace) -> None:
    flags = f"""
        --hf-checkpoint {folder}/model --init random --run-dir {folder}/run
        --prompt-data {folder}/prompts.jsonl --input-key prompt --rm-type random
        --num-rollout {options.steps} --rollout-batch-size {load.num_prompts}
        --n-samples-per-prompt {load.num_samples}
        --rollout-max-response-len {load.response_tokens} --num-steps-per-rollout 1
        --use-dynamic-batch-size --max-tokens-per-gpu {options.row_tokens}
        --engine-max-running {load.num_sequences} --engine-cache-tokens {load.num_tokens}
        --lr 1e-6 --progress plain
    """
    command = [sys.executable, str(ROOT / "train.py"), *flags.split(), *options.more]
    subprocess.run(command, check=True)


def timeline(row: dict, floor_s: float) -> dict:
    """One step: seconds by part, what is in none of them, and the ratio to the floor."""
    parts = {name: row.get(key, 0.0) for name, key in SPANS.items()}
    total_s = row["perf/step_time"]
    return {
        "step": row["step"],
        **parts,
        "other": total_s - sum(parts.values()),
        "total": total_s,
        "against_floor": total_s / floor_s,
        "logprob_diff": row.get("train/train_rollout_logprob_abs_diff", float("nan")),
    }


def make_model(folder: Path, shape) -> None:
    """A folder as a published model has it, without weights; no token ends an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    words = {f"t{index}": index for index in range(shape.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_positions,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype=torch.bfloat16,
    ).save_pretrained(folder)


def make_prompts(path: Path, shape, load: w1.Load, steps: int) -> None:
    """Prompts of random words, each one token."""
    draw = random.Random(0)
    rows = [
        {"prompt": " ".join(f"t{draw.randrange(shape.vocab)}" for _ in range(load.prompt_tokens))}
        for _ in range(load.num_prompts * steps)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
