"""Time and peak memory of the log-prob head alone, forward and backward, on one GPU.

    python benchmarks/kernel_head.py [--out FOLDER] [--tiny]

Qwen3-4B's vocabulary and width, bf16. The peak is over what was there before, gradients included;
the second of two runs counts, when everything is compiled.
"""

import argparse
import time
from pathlib import Path

import torch
import w1

from tandem.kernels.head import token_logprobs

TOKENS = (9216, 65_536)
KEEP_BYTES = (0, 3 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    options = parser.parse_args()
    shape, scale = (w1.TINY, 256) if options.tiny else (w1.QWEN3_4B, 1)
    device = torch.device("cpu" if options.tiny else "cuda")
    weight = 0.02 * torch.randn(shape.vocab, shape.width, device=device).bfloat16()
    weight.requires_grad_()
    rows = [
        measured(weight, tokens // scale, keep_bytes)
        for keep_bytes in KEEP_BYTES
        for tokens in TOKENS
    ]
    w1.report("head_memory", rows, options.out, vocab=shape.vocab, width=shape.width)


def measured(weight_VD: torch.Tensor, tokens: int, keep_bytes: int) -> dict:
    """One row: seconds and peak of the second run."""
    device = weight_VD.device
    hidden_TD = torch.randn(tokens, weight_VD.shape[1], device=device).bfloat16().requires_grad_()
    targets_T = torch.randint(len(weight_VD), (tokens,), device=device)
    seconds, peak = 0.0, 0
    for _ in range(2):
        weight_VD.grad = hidden_TD.grad = None
        w1.sync()
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin_s = time.perf_counter()
        logprobs_T, _ = token_logprobs(hidden_TD, weight_VD, targets_T, keep_bytes=keep_bytes)
        logprobs_T.sum().backward()
        w1.sync()
        seconds = time.perf_counter() - begin_s
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() - before
    return {
        "tokens": tokens,
        "keep_bytes": keep_bytes,
        "seconds": seconds,
        "peak_gib_over_start": peak / 2**30,
    }


if __name__ == "__main__":
    main()
