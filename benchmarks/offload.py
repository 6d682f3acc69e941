"""Seconds in which optimizer state goes to host memory and comes back, against plain pinned copies.

    python benchmarks/offload.py [--layers N] [--out FOLDER] [--tiny]

The state is that of Qwen3-4B's shape in bf16: fp32 masters and moments, 12 bytes a parameter, 45
GiB. Measured are the arena of pinned memory (made once), sleeping until the driver has the memory
back, waking until all is there, and waking beside matrix products, as it goes on beside a step's
forward passes. The floor is the same number of bytes by one buffer that torch has pinned. Digests
say that every bit came back.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import w1

from tandem.config import OptimConfig
from tandem.kernels.digest import digest_all
from tandem.models.decoder import Decoder
from tandem.train import AdamW

RUNS = 5
GIB = 2**30
FLOOR_BYTES = 4 * GIB
PRODUCT_WIDTH, NUM_PRODUCTS = 8192, 600


def main() -> None:
    options = asked()
    has_cuda = torch.cuda.is_available() and not options.tiny
    device = torch.device("cuda" if has_cuda else "cpu")
    shape = w1.TINY if options.tiny else w1.QWEN3_4B
    shape = replace(shape, num_layers=options.layers or shape.num_layers)
    decoder = Decoder(shape, torch.bfloat16, device)
    decoder.init_random(0)
    optimizer = AdamW(decoder.named_parameters(), OptimConfig())
    for key, tensor in optimizer.tensors().items():  # moments that are not all zero
        if "exp_avg" in key:
            tensor.normal_()
    rows, facts = measured(optimizer, device)
    w1.report("offload", rows, options.out, layers=shape.num_layers, **facts)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="fewer layers, for small machines")
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    return parser.parse_args()


def measured(
    optimizer: AdamW, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, float | bool]]:
    """A row for each way, and what there is to say of both."""
    sleeper, before = optimizer.sleeper, digests(optimizer)
    free_awake = free(device)
    first_s = timed(lambda: asleep(optimizer, device), device)
    freed = free(device) - free_awake
    is_whole = True
    taken: dict[str, list[float]] = {"sleep": [], "wake": [], "wake beside products": []}
    products = product_loop(device)
    alone_s = statistics.median(timed(products, device) for _ in range(RUNS))
    for _ in range(RUNS):
        taken["wake"].append(timed(sleeper.wake, device))
        is_whole &= digests(optimizer) == before
        taken["sleep"].append(timed(lambda: asleep(optimizer, device), device))
        taken["wake beside products"].append(timed(lambda: both(optimizer, products), device))
        is_whole &= digests(optimizer) == before
        asleep(optimizer, device)
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    seconds["wake beside products"] -= alone_s
    floors = floor_rates(min(FLOOR_BYTES, sleeper.num_bytes), device)
    rows = [
        {
            "way": name,
            "seconds": seconds[name],
            "GB/s": sleeper.num_bytes / seconds[name] / 1e9 if name in ("sleep", "wake") else "",
            "floor_s": sleeper.num_bytes / floors[name.split()[0]],
            "floor_GB/s": floors[name.split()[0]] / 1e9,
        }
        for name in seconds
    ]
    facts = {
        "state_GiB": sleeper.num_bytes / GIB,
        "freed_GiB": freed / GIB,
        "arena_s": first_s - seconds["sleep"],
        "products_s": alone_s,
        "is_whole": is_whole,
    }
    return rows, facts


def asleep(optimizer: AdamW, device: torch.device) -> None:
    """Puts the state to sleep and gives its memory back to the driver."""
    optimizer.sleeper.sleep()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def both(optimizer: AdamW, products: Callable[[], None]) -> None:
    """Wakes the state while products are computed, and waits for both."""
    optimizer.sleeper.wake()
    products()
    optimizer.sleeper.settle()


def product_loop(device: torch.device) -> Callable[[], None]:
    """Work that takes about as long as the copies."""
    width, count = (PRODUCT_WIDTH, NUM_PRODUCTS) if device.type == "cuda" else (64, 2)
    left = torch.randn(width, width, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(left)

    def run() -> None:
        for _ in range(count):
            torch.mm(left, left, out=out)

    return run


def floor_rates(num_bytes: int, device: torch.device) -> dict[str, float]:
    """Bytes a second of one plain copy each way."""
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    rates = {}
    for name, target, source in (("sleep", host, there), ("wake", there, host)):

        def copy(target: torch.Tensor = target, source: torch.Tensor = source) -> None:
            target.copy_(source, non_blocking=True)

        copy()
        rates[name] = num_bytes / statistics.median(timed(copy, device) for _ in range(RUNS))
    return rates


def digests(optimizer: AdamW) -> dict[str, int]:
    return digest_all(optimizer.tensors().items())


def timed(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    begin_s = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begin_s


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> int:
    """Device memory that the driver has to give; of a CPU nothing is known."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


if __name__ == "__main__":
    main()
