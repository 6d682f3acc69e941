"""Output tokens a second of the embedded engine on one GPU, log-probs included.

    python benchmarks/engine.py [--out FOLDER] [--tiny] [--loads w1 w1-64 w1-512 mixed tail queue]

w1: 32 x 8 samples, 256 + 1,024 tokens. w1-64 and w1-512: 64 and 512 samples at once. mixed: 256
sequences of their own with 100 to 1,024 tokens in and out. tail: 252 short samples and 4 of 8k
tokens. queue: 128 x 8 samples of 16 to 272 tokens for 512 slots. Each load is sampled `--runs`
times after one warm-up; the table shows the fastest and the median. Beside it: what stock SGLang
0.5.15.post1 made of the same load, as measured on one H200.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import w1

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.models.decoder import Decoder
from tandem.types import Request, SampleKey, Sampling

SGLANG = {"w1": 17_563.0, "w1-64": 10_296.0, "w1-512": 19_109.0}
"""Output tokens/s with log-probs, FlashAttention 3, one H200."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    loads = ["w1", "w1-64", "w1-512", "mixed", "tail", "queue"]
    parser.add_argument("--loads", nargs="+", default=loads)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--cache-tokens", type=int, default=600_000)
    options = parser.parse_args()
    shape, scale = (w1.TINY, 16) if options.tiny else (w1.QWEN3_4B, 1)
    device = torch.device("cpu" if options.tiny else "cuda")
    decoder = Decoder(shape, torch.float32 if options.tiny else torch.bfloat16, device)
    decoder.init_random(0)
    cfg = EngineConfig(
        engine_max_running=512,
        engine_cache_tokens=options.cache_tokens // scale,
        deterministic_mode=options.deterministic,
    )
    begin_s = time.perf_counter()
    engine = TorchEngine(decoder, None, cfg, device, eos_token_ids=())
    rows = [measured(engine, shape, name, scale, options.runs) for name in options.loads]
    floor = w1.sampling_floor_s(shape, w1.Load())
    shared = w1.sampling_floor_s(shape, w1.Load(), shares_prompt=True)
    facts = {"floor_s": floor, "floor_shared_prompt_s": shared}
    facts |= {"seconds_in_all": time.perf_counter() - begin_s}
    w1.report("engine", rows, options.out, deterministic=options.deterministic, **facts)


def measured(engine: TorchEngine, shape, name: str, scale: int, runs: int) -> dict:
    """One row of the table."""
    seconds, warm_s = [], 0.0
    for run in range(runs + 1):
        requests = load_of(name, shape.vocab, scale, run)
        if not run and name == "tail":  # what is left of its tail needs no warming
            requests = [clipped(request, 512 // scale) for request in requests]
        w1.sync()
        begin_s = time.perf_counter()
        done = engine.generate(requests)
        w1.sync()
        took_s = time.perf_counter() - begin_s
        if run:
            seconds.append(took_s)
        else:
            warm_s = took_s
    num_tokens = sum(len(one.tokens_C) for one in done)
    assert num_tokens == sum(request.sampling.max_new_tokens for request in requests)
    assert all(np.isfinite(one.logprobs_C).all() for one in done)
    best = num_tokens / min(seconds)
    row = {
        "load": name,
        "sequences": len(requests),
        "output_tokens": num_tokens,
        "first_s": warm_s,
        "best_s": min(seconds),
        "median_s": statistics.median(seconds),
        "tokens_per_s": best,
    }
    if name in SGLANG:
        row["against_sglang"] = best / SGLANG[name]
    if torch.cuda.is_available():
        row["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def clipped(request: Request, most: int) -> Request:
    count = min(request.sampling.max_new_tokens, most)
    return replace(request, sampling=replace(request.sampling, max_new_tokens=count))


def load_of(name: str, vocab: int, scale: int, run: int) -> list[Request]:
    """The requests of a load; every run has prompts of its own."""
    rng = np.random.default_rng(run)

    def group(index: int, size: int, prompt: int, response: Sequence[int]) -> list[Request]:
        tokens_T = rng.integers(0, vocab, prompt).astype(np.int32)
        return [
            Request(
                id=f"{run}-{index}-{place}",
                tokens_T=tokens_T,
                sampling=Sampling(max_new_tokens=response[place], ignore_eos=True),
                key=SampleKey(seed=run, prompt=index, sample=place),
                group=f"{run}-{index}",
            )
            for place in range(size)
        ]

    prompt, response = 256 // scale, 1024 // scale
    if name.startswith("w1"):
        num_groups = int(name.partition("-")[2] or 256) // 8
        groups = [group(index, 8, prompt, [response] * 8) for index in range(num_groups)]
    elif name == "mixed":
        low, high = 100 // scale, 1024 // scale
        lengths = rng.integers(low, high + 1, size=(256, 2)).tolist()
        groups = [group(index, 1, one, [other]) for index, (one, other) in enumerate(lengths)]
    elif name == "queue":
        lengths = rng.integers(16 // scale, 272 // scale + 1, size=(128, 8)).tolist()
        groups = [group(index, 8, prompt, own) for index, own in enumerate(lengths)]
    else:
        assert name == "tail", f"no load {name}"
        groups = [
            group(index, 8, prompt, [(32 * prompt if index < 4 and place == 0 else prompt)
                                     for place in range(8)])
            for index in range(32)
        ]  # fmt: skip
    return [request for requests in groups for request in requests]


if __name__ == "__main__":
    main()
