"""Rows of the kernel benchmark's table, and how a kernel is timed and compared."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import w1
from torch import Tensor

SHAPE = w1.QWEN3_4B
WIDTH, FFN, HEADS, KEY_HEADS, SIZE = (
    SHAPE.width,
    SHAPE.ffn,
    SHAPE.num_heads,
    SHAPE.num_key_heads,
    SHAPE.head_size,
)
DEVICE = torch.device("cuda")
BF16 = torch.bfloat16


class Row(NamedTuple):
    """One line of the table. `floor_s` is what the bytes or the FLOPs must take."""

    name: str
    error: float | None = None  # relative to the largest value; None: only timed
    bound: float = 0.02
    ms: float | None = None
    floor_s: float | None = None
    note: str = ""

    @property
    def is_right(self) -> bool:
        return self.error is None or self.error <= self.bound


def line(row: Row) -> str:
    error = "" if row.error is None else f"{row.error:9.2e} {'ok' if row.is_right else 'WRONG'}"
    took = "" if row.ms is None else f"{row.ms * 1e3:10.1f} us"
    floor = ""
    if row.ms is not None and row.floor_s:
        floor = f"floor {row.floor_s * 1e6:9.1f} us {100 * row.floor_s / (row.ms * 1e-3):4.0f} %"
    return f"{row.name:44s} {error:16s} {took:14s} {floor:28s} {row.note}".rstrip()


def random(*shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=DEVICE) * scale).to(dtype)


def error_of(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.to(found.device).double()
    difference = (found.detach().double() - wanted).abs().max()
    return float(difference / wanted.abs().max().clamp_min(1e-30))


def graph_ms(function: Callable[[], object], repeats: int = 20) -> float:
    """The median time of the function as a captured graph, with a cold L2 cache."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return plain_ms(graph.replay, repeats)


def plain_ms(function: Callable[[], object], repeats: int = 10) -> float:
    """The median time of the function, launches included, with a cold L2 cache."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
    function()
    times = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def gradients(outputs: list[Tensor], inputs: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, grads, retain_graph=True))
