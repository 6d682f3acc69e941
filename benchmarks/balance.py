"""How unevenly data-parallel ranks are loaded, with and without `--balance-data`.

    python benchmarks/balance.py [--ranks 8] [--steps 50] [--out FOLDER]

Lengths are drawn: responses lognormal with the median and spread given below, cut at the limit, all
samples of a prompt around the prompt's own median; prompts of 40 to 400 tokens. Work is that of the
dialect's FLOPs formula for Qwen3-4B. A step ends with its slowest rank, so `waiting` is the share
of all ranks' time that is spent waiting for it: 1 - mean / max.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import w1

from tandem.config import BatchConfig
from tandem.models.shape import forward_flops
from tandem.packing import plan
from tandem.parallel import Layout

LENGTHS = {
    # median of responses, spread of prompts' medians, spread of samples around them, limit
    "short answers": (300, 0.6, 0.4, 2048),
    "reasoning": (3000, 0.7, 0.5, 16384),
    "long reasoning": (6000, 0.9, 0.6, 32768),
}
"""Standard deviations are of logarithms."""

NUM_PROMPTS, NUM_SAMPLES = 32, 8
SETTINGS = {
    "static": BatchConfig(micro_batch_size=1),
    "static, balanced": BatchConfig(micro_batch_size=1, balance_data=True),
    "dynamic": BatchConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=16384),
    "dynamic, balanced": BatchConfig(
        use_dynamic_batch_size=True, max_tokens_per_gpu=16384, balance_data=True
    ),
    "dynamic by FLOPs, balanced": BatchConfig(
        use_dynamic_batch_size=True,
        max_tokens_per_gpu=16384,
        balance_data=True,
        balance_by_flops=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    options = parser.parse_args()
    rows = [
        {"lengths": name, "batches": setting, **measured(name, cfg, options.ranks, options.steps)}
        for name in LENGTHS
        for setting, cfg in SETTINGS.items()
    ]
    facts = {"ranks": options.ranks, "steps": options.steps}
    w1.report("balance", rows, options.out, samples=NUM_PROMPTS * NUM_SAMPLES, **facts)


def measured(name: str, cfg: BatchConfig, num_ranks: int, num_steps: int) -> dict[str, float]:
    """The share of time that is waited, and rows a rank, over steps of other lengths."""
    cost = partial(forward_flops, w1.QWEN3_4B)
    layout = Layout(data_size=num_ranks, sequence_cost=cost)
    waiting, num_rows, tokens = [], [], []
    for seed in range(num_steps):
        lengths = draw(name, seed)
        (step,) = plan(lengths, range(len(lengths)), [True] * len(lengths), layout, cfg)
        work = [sum(cost(lengths[i]) for row in rank for i in row) for rank in step.ranks]
        waiting.append(1 - np.mean(work) / np.max(work))
        num_rows.append(len(step.ranks[0]))
        tokens.append(max(sum(lengths[i] for i in row) for rank in step.ranks for row in rank))
    return {
        "waiting": float(np.mean(waiting)),
        "waiting_worst": float(np.max(waiting)),
        "rows_a_rank": float(np.mean(num_rows)),
        "longest_row": float(np.mean(tokens)),
    }


def draw(name: str, seed: int) -> list[int]:
    """Tokens of every sample of a step, samples of a prompt together."""
    median, of_prompts, of_samples, limit = LENGTHS[name]
    rng = np.random.default_rng(seed)
    medians_P = median * np.exp(of_prompts * rng.standard_normal(NUM_PROMPTS))
    spread_PG = np.exp(of_samples * rng.standard_normal((NUM_PROMPTS, NUM_SAMPLES)))
    responses_PG = np.minimum(medians_P[:, None] * spread_PG, limit)
    prompts_P = rng.integers(40, 400, NUM_PROMPTS)
    return (prompts_P[:, None] + responses_PG).astype(int).flatten().tolist()


if __name__ == "__main__":
    main()
