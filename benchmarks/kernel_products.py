"""Products of few rows with the weights of Qwen3-4B: cuBLAS without split against our tiles.

    python benchmarks/kernel_products.py [--rows 1 8 16 ...] [--out FOLDER]

A row of the table is a matrix and a number of rows: microseconds of either, of the floor (weights
read once at the copy ceiling), and whether the bits of both are those that cuBLAS gives the same
rows among 10,240. Times are of captured graphs that walk over copies of the weights, so no product
finds its weights in the L2 cache.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import w1
from kernel_rows import BF16, DEVICE, FFN, HEADS, KEY_HEADS, SIZE, WIDTH
from torch import Tensor
from torch.nn import functional

from tandem.kernels.cuda.linear import few_rows_product
from tandem.kernels.linear import sum_products_in_one_order

MATRICES = {
    "qkv": ((HEADS + 2 * KEY_HEADS) * SIZE, WIDTH),
    "out": (WIDTH, HEADS * SIZE),
    "gate_up": (2 * FFN, WIDTH),
    "down": (WIDTH, FFN),
}
ROWS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
MOST = 64
"""Rows that one of our tiles takes."""
COPY_BYTES = 4.3e12
L2_BYTES = 3e8  # several times the cache


def main() -> None:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    options = parser.parse_args()
    sum_products_in_one_order()
    torch.manual_seed(0)
    rows = []
    for name, (outputs, inner) in MATRICES.items():
        num_copies = int(L2_BYTES // (2 * outputs * inner)) + 2
        copies = [random(outputs, inner, 0.02) for _ in range(num_copies)]
        many = random(10_240, inner, 1.0)
        wanted = functional.linear(many, copies[0])
        for count in options.rows:
            x = many[:count].contiguous()
            row = {"matrix": name, "rows": count, "floor_us": 2e6 * outputs * inner / COPY_BYTES}
            ways = {"cublas": functional.linear}
            if count <= MOST:
                ways["ours"] = few_rows_product
            for way, product in ways.items():
                row[f"{way}_us"] = microseconds(product, x, copies)
                row[f"{way}_equal"] = torch.equal(product(x, copies[0]), wanted[:count])
            rows.append(row)
    w1.report("kernel_products", rows, options.out)


def random(outputs: int, inner: int, scale: float) -> Tensor:
    return (torch.randn(outputs, inner, device=DEVICE) * scale).to(BF16)


def microseconds(
    product: Callable[[Tensor, Tensor], Tensor], x: Tensor, copies: Sequence[Tensor]
) -> float:
    """The time of a product, of graphs that take one with each copy of the weights."""
    product(x, copies[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            product(x, copy)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(5):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / 5 / len(copies)


if __name__ == "__main__":
    main()
