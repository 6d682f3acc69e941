"""A layer of experts against the matmul ceiling, on one GPU; its grouped products alone beside it.

    python benchmarks/kernel_experts.py [--tokens 16384] [--decode 256] [--out FOLDER]
    python benchmarks/kernel_experts.py --tiny

The layer is Qwen3-30B-A3B's (128 experts, 8 a token, width 2048, expert width 768), in bf16 with
random weights and random tokens, so experts are about equally busy. `rows` lines are the grouped
product of gate and up, and of down, on rows that lie sorted already; `layer` lines are the whole
block: router, sorting, rows there and back. The share is of 775 TFLOP/s. `decode` is the layer for
few tokens as a captured graph, against reading the touched weights once at 4.3 TB/s. Checked on the
way against the plain form in fp32. `--tiny` walks through on a CPU, where no figure means anything.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import w1

from tandem.kernels.experts import grouped_linear, sort_by_expert
from tandem.models.experts import NO_ROUTING, Experts, Routing
from tandem.models.mixture import Mixture

MIXTURE = Mixture(num_experts=128, per_token=8, ffn=768, layers=(0,), normalises=True)
SHAPE = replace(w1.QWEN3_4B, width=2048, mixture=MIXTURE)
TINY_MIXTURE = replace(MIXTURE, num_experts=8, per_token=2, ffn=32)
TINY = replace(SHAPE, width=64, mixture=TINY_MIXTURE)
REPEATS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    shape = TINY if options.tiny else SHAPE
    num_tokens = 64 if options.tiny else options.tokens
    experts = made(shape, device)
    y_TD = torch.randn(num_tokens, shape.width, device=device).bfloat16().requires_grad_()
    result: dict = {
        "benchmark": "kernel_experts",
        "device": "cpu" if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tokens": num_tokens,
        "relative_error": round(error_of(experts, y_TD), 5),
    }
    result |= product_times(experts, y_TD) | layer_times(experts, y_TD)
    if device.type == "cuda":
        result |= decode_times(experts, y_TD.detach()[: options.decode])
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    for name, value in result.items():
        print(f"{name:32s} {value}")
    print(json.dumps(result))
    if not options.tiny:
        (options.out / "kernel_experts.json").write_text(json.dumps(result) + "\n")


def made(shape, device: torch.device) -> Experts:
    """The layer with random weights; the router's are small, so that choices are even."""
    torch.manual_seed(0)
    experts = Experts(shape, 0, torch.bfloat16).to_empty(device=device)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return experts


def layer_flops(experts: Experts, num_tokens: int) -> float:
    """Of the expert products of one forward pass."""
    width = experts.router.weight.shape[1]
    return 6.0 * num_tokens * width * experts.mixture.ffn * experts.mixture.per_token


@torch.no_grad()
def error_of(experts: Experts, y_TD: torch.Tensor) -> float:
    """The largest error of some tokens, relative to the largest value, of the plain form in fp32
    that takes the same experts."""
    some_TD = y_TD[:32]
    taken_TLk = torch.zeros(32, 1, experts.mixture.per_token, dtype=torch.int16, device=y_TD.device)
    found = experts(some_TD, Routing(recorded_TLk=taken_TLk)).float()
    probs_TE = (some_TD.float() @ experts.router.weight.float().T).softmax(-1)
    chosen_Tk = taken_TLk[:, 0].long()
    weights_Tk = probs_TE.gather(1, chosen_Tk)
    weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
    wanted = torch.zeros_like(found)
    for token, (row, weights) in enumerate(zip(chosen_Tk.tolist(), weights_Tk, strict=True)):
        for expert, weight in zip(row, weights, strict=True):
            gate_up = experts.gate_up.weight[expert].float() @ some_TD[token].float()
            hidden = torch.nn.functional.silu(gate_up[0::2]) * gate_up[1::2]
            wanted[token] += weight * (experts.down.weight[expert].float() @ hidden)
    return float((found - wanted).abs().max() / wanted.abs().max())


def product_times(experts: Experts, y_TD: torch.Tensor) -> dict:
    """The grouped products on sorted rows."""
    taken_TLk = y_TD.new_zeros(len(y_TD), 1, experts.mixture.per_token, dtype=torch.int16)
    with torch.no_grad():
        experts(y_TD, Routing(recorded_TLk=taken_TLk))
    sorting = sort_by_expert(taken_TLk[:, 0].long(), experts.mixture.num_experts)
    num_rows, found = taken_TLk.numel(), {}
    for name, weight in (("gate_up", experts.gate_up.weight), ("down", experts.down.weight)):
        rows_MD = y_TD.new_empty(num_rows, weight.shape[2]).normal_().requires_grad_()
        grad_MO = y_TD.new_empty(num_rows, weight.shape[1]).normal_()
        flops = 2.0 * num_rows * weight.shape[1] * weight.shape[2]

        def run(rows_MD=rows_MD, weight=weight, grad_MO=grad_MO, trains=True):
            out = grouped_linear(rows_MD, weight, sorting.ends_E)
            return torch.autograd.grad(out, (rows_MD, weight), grad_MO) if trains else out

        found |= timed(f"rows_{name}_forward", lambda run=run: run(trains=False), flops)
        found |= timed(f"rows_{name}_both", run, 3 * flops)
    return found


def layer_times(experts: Experts, y_TD: torch.Tensor) -> dict:
    """The whole block."""
    flops, grad_TD = layer_flops(experts, len(y_TD)), torch.randn_like(y_TD)
    inputs = (y_TD, *experts.parameters())

    def forward():
        with torch.no_grad():
            experts(y_TD)

    def both():
        torch.autograd.grad(experts(y_TD), inputs, grad_TD)

    return timed("layer_forward", forward, flops) | timed("layer_both", both, 3 * flops)


@torch.no_grad()
def decode_times(experts: Experts, y_RD: torch.Tensor) -> dict:
    """Few tokens, as the engine runs them: captured, so nothing may wait for the device."""
    for _ in range(3):
        experts(y_RD, NO_ROUTING)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        experts(y_RD, NO_ROUTING)
    taken_TLk = y_RD.new_zeros(len(y_RD), 1, experts.mixture.per_token, dtype=torch.int16)
    experts(y_RD, Routing(recorded_TLk=taken_TLk))
    share = len(taken_TLk.unique()) / experts.mixture.num_experts
    touched = share * (experts.gate_up.weight.nbytes + experts.down.weight.nbytes)
    ms = median_ms(graph.replay)
    floor_ms = 1e3 * touched / w1.COPY_BYTES
    return {
        "decode_tokens": len(y_RD),
        "decode_ms": round(ms, 4),
        "decode_floor_ms": round(floor_ms, 4),
        "decode_share_of_copy_ceiling": round(floor_ms / ms, 3),
    }


def timed(name: str, function: Callable[[], object], flops: float) -> dict:
    ms = median_ms(function)
    share = flops / (ms * 1e-3) / w1.MATMUL_FLOPS
    return {f"{name}_ms": round(ms, 4), f"{name}_share": round(share, 3)}


def median_ms(function: Callable[[], object]) -> float:
    """The median of some runs, launches included."""
    has_cuda = torch.cuda.is_available()
    function()
    times = []
    for _ in range(REPEATS):
        if has_cuda:
            torch.cuda.synchronize()
        begin_s = time.perf_counter()
        function()
        if has_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin_s))
    return statistics.median(times)


if __name__ == "__main__":
    main()
