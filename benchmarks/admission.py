"""Sequences that wait for slots: each started as a slot is vacated, or several together.

    python benchmarks/admission.py [--shape small w1] [--out FOLDER] [--tiny]

512 answers of 282 tokens on average, at most 512, eight to a prompt of 30 tokens, for 256 slots, on
one GPU. The share of the slots that is waited for is `VACANT_SHARE` of the scheduler; 0 is as each
comes. Two rounds of each after two that warm up; small: 16 layers of width 1,024, 282 tokens.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import w1

from tandem.config import EngineConfig
from tandem.engine.torch import scheduler
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.linear import sum_products_in_one_order
from tandem.models.decoder import Decoder
from tandem.types import Request, SampleKey, Sampling

SHAPES = {
    "small": replace(
        w1.QWEN3_4B, num_layers=16, width=1024, ffn=3072, num_heads=8, num_key_heads=2, vocab=282
    ),
    "w1": w1.QWEN3_4B,
}
SHARES = (0.0, 1 / 64, 1 / 32, 1 / 16)
PROMPT, MEAN, MOST = 30, 282, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    sum_products_in_one_order()
    rows = []
    for name in ["tiny"] if options.tiny else options.shape:
        shape = w1.TINY if options.tiny else SHAPES[name]
        scale = 8 if options.tiny else 1
        decoder = Decoder(shape, torch.float32 if options.tiny else torch.bfloat16, device)
        decoder.init_random(0)
        cfg = EngineConfig(engine_max_running=256 // scale, engine_cache_tokens=300_000 // scale)
        engine = TorchEngine(decoder, None, cfg, device, eos_token_ids=())
        for share in (0.0, 1 / 32):
            for seed in (0, 9):
                measured(engine, shape.vocab, scale, share, seed)
        for seed in (1, 2):
            rows += [
                {"shape": name, "round": seed, **measured(engine, shape.vocab, scale, share, seed)}
                for share in SHARES
            ]
        engine.close()
    w1.report("admission", rows, options.out)


def measured(
    engine: TorchEngine, vocab: int, scale: int, share: float, seed: int
) -> dict[str, Any]:
    """Seconds of a round and output tokens a second."""
    scheduler.VACANT_SHARE = share
    requests = load(vocab, scale, seed)
    w1.sync()
    begin_s = time.perf_counter()
    done = engine.generate(requests)
    w1.sync()
    seconds = time.perf_counter() - begin_s
    num_tokens = sum(len(one.tokens_C) for one in done)
    return {"share": share, "seconds": seconds, "tokens_per_s": num_tokens / seconds}


def load(vocab: int, scale: int, seed: int) -> list[Request]:
    """Answers that end as if each token were the last one with one chance."""
    rng, requests = np.random.default_rng(seed), []
    for prompt in range(64 // scale):
        tokens_T = rng.integers(0, vocab, PROMPT).astype(np.int32)
        for sample in range(8):
            count = int(min(MOST // scale, rng.geometric(scale / MEAN)))
            requests.append(
                Request(
                    id=f"{seed}-{prompt}-{sample}",
                    tokens_T=tokens_T,
                    sampling=Sampling(max_new_tokens=count, ignore_eos=True),
                    key=SampleKey(seed=seed, prompt=prompt, sample=sample),
                    group=f"{seed}-{prompt}",
                )
            )
    return requests


if __name__ == "__main__":
    main()
