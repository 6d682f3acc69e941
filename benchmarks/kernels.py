"""Every CUDA kernel checked against its formula and timed against its floor, on one GPU.

    python benchmarks/kernels.py [--only norm decode ...] [--sweep] [--out FOLDER]

Shapes are Qwen3-4B's. A check compares with plain torch in fp32 on fresh random data and names the
largest error relative to the largest value. A time is that of a captured CUDA graph (so launches
from Python do not count), the L2 cache cleared before it, unless the kernel takes milliseconds.
The floor is bytes at the copy ceiling or FLOPs at the matmul ceiling. `--sweep` tries the tilings
of packed attention and of the row-invariant product.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import w1
from kernel_attention import decode_section, packed_section
from kernel_rows import (
    BF16,
    DEVICE,
    FFN,
    HEADS,
    KEY_HEADS,
    SHAPE,
    SIZE,
    WIDTH,
    Row,
    error_of,
    gradients,
    graph_ms,
    line,
    plain_ms,
    random,
)
from torch import Tensor

from tandem.kernels import digest, head, linear, norm, rope, sample, swiglu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    options = parser.parse_args()
    torch.manual_seed(torch.seed() % 2**31)
    rows: list[Row] = []
    for name in options.only:
        for row in walked(name, options.sweep):
            rows.append(row)
            print(line(row), flush=True)
    wrong = [row.name for row in rows if not row.is_right]
    print(f"{len(wrong)} wrong: {wrong}" if wrong else f"all {len(rows)} lines right")
    result = {
        "benchmark": "kernels",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "wrong": wrong,
        "us": {row.name: round(row.ms * 1e3, 1) for row in rows if row.ms is not None},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    whole = {**result, "rows": [row._asdict() for row in rows]}
    (options.out / "kernels.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(result))


def walked(name: str, is_sweep: bool) -> Iterator[Row]:
    """The rows of a section; a fault becomes a row, so that the others still run."""
    try:
        yield from SECTIONS[name](is_sweep)
    except Exception as fault:  # any fault of a kernel is a result here
        yield Row(name, error=math.inf, note=f"{type(fault).__name__}: {str(fault)[:300]}")
    torch.cuda.empty_cache()


def layer_rows(
    name: str,
    function: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    values: int,
    small: list[Tensor],
) -> Iterator[Row]:
    """Forward and backward of a layer: checked against the CPU's on small inputs, timed on large.

    `values` are the bf16 numbers that the forward pass must read and write; backward twice that.
    """
    ours = [x.detach().clone().requires_grad_() for x in small]
    theirs = [x.detach().cpu().float().requires_grad_() for x in small]
    found, wanted = function(*ours), function(*theirs)
    grads = [random(*y.shape) for y in found]
    error = max(error_of(a, b) for a, b in zip(found, wanted, strict=True))
    yield Row(f"{name} forward", error)
    pairs = zip(
        gradients(list(found), ours, grads),
        gradients(list(wanted), theirs, [g.cpu().float() for g in grads]),
        strict=True,
    )
    yield Row(f"{name} gradients", max(error_of(a, b) for a, b in pairs))
    floor_s = 2 * values / w1.COPY_BYTES
    with torch.no_grad():
        yield Row(f"{name} forward", ms=graph_ms(lambda: function(*inputs)), floor_s=floor_s)
    large = [x.requires_grad_() for x in inputs]
    outputs = list(function(*large))
    grads = [random(*y.shape) for y in outputs]
    ms = plain_ms(lambda: gradients(outputs, large, grads))
    yield Row(f"{name} backward", ms=ms, floor_s=2 * floor_s)


def norm_section(_: bool) -> Iterator[Row]:
    def add_norm(*inputs: Tensor) -> tuple[Tensor, ...]:
        return norm.add_rms_norm(*inputs, 1e-6)

    for tokens in (256, 16_384):
        yield from layer_rows(
            f"add_rms_norm {tokens}",
            add_norm,
            [random(tokens, WIDTH), random(tokens, WIDTH), random(WIDTH)],
            4 * tokens * WIDTH,
            [random(33, WIDTH), random(33, WIDTH), random(WIDTH)],
        )
    x, weight = random(300, WIDTH), random(WIDTH)
    same = torch.equal(norm.rms_norm(x, weight, 1e-6)[7:9], norm.rms_norm(x[7:9], weight, 1e-6))
    yield Row("rms_norm: bits of a row are its own", 0.0 if same else 1.0)


def swiglu_section(_: bool) -> Iterator[Row]:
    for tokens in (256, 16_384):
        yield from layer_rows(
            f"swiglu {tokens}",
            lambda gate_up: (swiglu.swiglu(gate_up),),
            [random(tokens, 2 * FFN)],
            3 * tokens * FFN,
            [random(33, 2 * FFN)],
        )


def rope_section(_: bool) -> Iterator[Row]:
    columns = (HEADS + 2 * KEY_HEADS) * SIZE

    def turned(qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> tuple[Tensor, ...]:
        positions = torch.arange(len(qkv), device=qkv.device) % 4096
        table = rope.rope_table(SIZE, 4096, 1e6, None, qkv.device)
        return rope.qkv_rope(qkv, positions, *table, HEADS, KEY_HEADS, SIZE, q_norm, k_norm, 1e-6)

    table = rope.rope_table(SIZE, 4096, 1e6, None, DEVICE)
    small = [random(33, columns), random(SIZE), random(SIZE)]
    for tokens in (256, 16_384):
        positions = torch.arange(tokens, device=DEVICE) % 4096
        inputs = [random(tokens, columns), random(SIZE), random(SIZE)]
        how = (positions, *table, HEADS, KEY_HEADS, SIZE)

        def timed(qkv: Tensor, q_norm: Tensor, k_norm: Tensor, how=how) -> tuple[Tensor, ...]:
            return rope.qkv_rope(qkv, *how, q_norm, k_norm, 1e-6)

        rows = layer_rows(f"qkv_rope {tokens}", turned, inputs, 2 * tokens * columns, small)
        yield from itertools.islice(rows, 2)
        floor_s = 4 * tokens * columns / w1.COPY_BYTES
        with torch.no_grad():
            ms = graph_ms(lambda inputs=inputs, timed=timed: timed(*inputs))
        yield Row(f"qkv_rope {tokens} forward", ms=ms, floor_s=floor_s)
        large = [x.requires_grad_() for x in inputs]
        outputs = list(timed(*large))
        grads = [random(*y.shape) for y in outputs]
        ms = plain_ms(lambda: gradients(outputs, large, grads))  # noqa: B023
        yield Row(f"qkv_rope {tokens} backward", ms=ms, floor_s=1.5 * floor_s)


def sample_section(_: bool) -> Iterator[Row]:
    rows, vocab = 256, SHAPE.vocab
    words = [torch.randint(-(2**62), 2**62, (rows,), device=DEVICE) for _ in range(4)]
    u = sample.uniform(*words)
    same = torch.equal(u.cpu(), sample.uniform(*(word.cpu() for word in words)))
    ms = graph_ms(lambda: sample.uniform(*words))
    yield Row("uniform: bits of the CPU", 0.0 if same else 1.0, ms=ms)
    logits = random(rows, vocab, dtype=torch.float32, scale=3.0)
    temperature = torch.tensor([1.0, 0.7, 0.0, 1.3], device=DEVICE).repeat(rows // 4)
    ones = torch.ones(rows, device=DEVICE)
    none = torch.full((rows,), -1, device=DEVICE)
    cuts = {
        "free": (None, None),
        "free, asked": (ones, none),
        "top-p 0.7": (ones * 0.7, none),
        "top-k 50": (ones, none * -50),
        "top-k 50, top-p 0.9": (ones * 0.9, none * -50),
    }
    for name, cut in cuts.items():
        how = (logits, u, temperature, *cut)
        found = sample.choose_tokens(*how)
        wanted = sample.choose_tokens(*(None if x is None else x[:32].cpu() for x in how))
        # a token may differ where u falls on a border to within rounding
        differ = (found[0][:32].cpu() != wanted[0]).float().mean().item()
        yield Row(f"choose_tokens {name}: tokens", differ, 0.04)
        is_same = found[0][:32].cpu() == wanted[0]
        error = (found[1][:32].cpu() - wanted[1]).abs()[is_same].max().item()
        ms = graph_ms(lambda how=how: sample.choose_tokens(*how))
        yield Row(f"choose_tokens {name}", error, 1e-4, ms, 4 * rows * vocab / w1.COPY_BYTES)
    part = sample.choose_tokens(logits[5:9], u[5:9], temperature[5:9])
    whole = sample.choose_tokens(logits, u, temperature)
    same = all(torch.equal(a, b[5:9]) for a, b in zip(part, whole, strict=True))
    yield Row("choose_tokens: a row's result is its own", 0.0 if same else 1.0)


def head_section(_: bool) -> Iterator[Row]:
    vocab = SHAPE.vocab
    weight = random(vocab, WIDTH, scale=0.05).requires_grad_()
    hidden = random(700, WIDTH).requires_grad_()
    targets = torch.randint(vocab, (700,), device=DEVICE)
    found = head.token_logprobs(hidden, weight, targets, 0.8, 256, entropy_needs_grad=True)
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    logp = torch.log_softmax(wide[0] @ wide[1].T / 0.8, -1)
    wanted = (logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1))
    for name, a, b in zip(("log-probs", "entropy"), found, wanted, strict=True):
        yield Row(f"token_logprobs: {name}", error_of(a, b), 1e-4)
    grads = [torch.randn_like(x) for x in wanted]
    pairs = zip(
        gradients(list(found), [hidden, weight], grads),
        gradients(list(wanted), wide, grads),
        strict=True,
    )
    yield Row("token_logprobs: gradients", max(error_of(a, b) for a, b in pairs))
    del logp, wanted, wide, grads, pairs, found
    logits = head.head_logits(hidden, weight)
    chosen, logprobs = sample.choose_tokens(
        logits, torch.rand(700, device=DEVICE).double(), torch.full((700,), 0.8, device=DEVICE)
    )
    again, _ = head.token_logprobs(hidden, weight, chosen, 0.8, 700)
    yield Row("sampler's and head's log-probs, equal logits", error_of(logprobs, again), 0.0)
    for tokens in (9216, 65_536):
        torch.cuda.empty_cache()
        yield from head_rows(random(tokens, WIDTH).requires_grad_(), weight)


def head_rows(hidden: Tensor, weight: Tensor) -> Iterator[Row]:
    tokens, flops = len(hidden), 2 * len(hidden) * weight.numel()
    targets = torch.randint(len(weight), (tokens,), device=DEVICE)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        ms = plain_ms(lambda: head.token_logprobs(hidden, weight, targets), 3)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    floor_s, note = flops / w1.MATMUL_FLOPS, f"peak {peak:.2f} GiB, 0.25 the timer's"
    yield Row(f"token_logprobs {tokens} forward", ms=ms, floor_s=floor_s, note=note)
    grad = torch.randn(tokens, device=DEVICE)
    for keep_bytes in (0, 3 << 30):

        def both(keep_bytes: int = keep_bytes) -> list[Tensor]:
            logprobs, _ = head.token_logprobs(hidden, weight, targets, keep_bytes=keep_bytes)
            return list(torch.autograd.grad([logprobs], [hidden, weight], [grad]))

        torch.cuda.reset_peak_memory_stats()
        ms = plain_ms(both, 3)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        size = (hidden.numel() + weight.numel()) / 2**29
        name = f"token_logprobs {tokens} both, {keep_bytes >> 30} GiB kept"
        note = f"peak {peak:.2f} GiB, gradients of {size:.2f}"
        yield Row(name, ms=ms, floor_s=3 * floor_s, note=note)


def linear_section(is_sweep: bool) -> Iterator[Row]:
    from tandem.kernels.cuda import linear as fused

    sizes = (WIDTH, 2 * FFN), (FFN, WIDTH), (WIDTH, (HEADS + 2 * KEY_HEADS) * SIZE)
    for inner, outputs in sizes:
        weight = random(outputs, inner, scale=inner**-0.5)
        whole_x = random(16_384, inner)
        whole = linear.invariant_linear(whole_x, weight)
        error = error_of(whole[:200], whole_x[:200].float() @ weight.float().T)
        yield Row(f"invariant_linear {inner} x {outputs}", error)
        differ = sum(
            not torch.equal(linear.invariant_linear(whole_x[at : at + rows], weight),
                            whole[at : at + rows])
            for rows in (1, 7, 64, 65, 200, 256, 512, 513, 3000) for at in (0, 33, 4000)
        )  # fmt: skip
        yield Row("  its bits by number and place of rows", float(differ), 0.0)
        for rows in (64, 256, 16_384):
            x = whole_x[:rows]
            read = 2 * (x.numel() + weight.numel() + rows * outputs) / w1.COPY_BYTES
            floor_s = max(2 * rows * weight.numel() / w1.MATMUL_FLOPS, read)
            ms = graph_ms(lambda x=x, w=weight: linear.invariant_linear(x, w))
            cublas = graph_ms(lambda x=x, w=weight: torch.nn.functional.linear(x, w))
            note = f"cuBLAS {cublas * 1e3:.1f} us, ratio {ms / cublas:.2f}"
            yield Row(f"  {rows} rows", ms=ms, floor_s=floor_s, note=note)
            if is_sweep and (rows, outputs) == (
                256,
                2 * FFN,
            ):
                yield from linear_sweep(fused, x, weight, floor_s)


def linear_sweep(fused, x: Tensor, weight: Tensor, floor_s: float) -> Iterator[Row]:
    found = []
    for t, o, d, warps, stages in itertools.product((64, 128), (64, 128), (64,), (4,), (3, 4)):
        names = ("TILE_T", "TILE_O", "TILE_D", "num_warps", "num_stages")
        tile = dict(zip(names, (t, o, d, warps, stages), strict=True))
        try:
            ms = graph_ms(lambda tile=tile: fused.product(x, weight, None, BF16, tile), 5)
        except Exception:  # does not fit the multiprocessor
            continue
        found.append((ms, tile))
    for ms, tile in sorted(found, key=lambda pair: pair[0])[:2]:
        yield Row(f"  sweep {len(x)} rows", ms=ms, floor_s=floor_s, note=str(tile))


def digest_section(_: bool) -> Iterator[Row]:
    small = [random(3, 5), random(100_003), random(40_000, dtype=torch.float32).view(200, 200).t()]
    same = all(digest.tensor_digest(x) == digest.tensor_digest(x.cpu()) for x in small)
    yield Row("digest: that of the CPU", 0.0 if same else 1.0)
    large = {str(i): torch.empty(10_000_000, dtype=BF16, device=DEVICE) for i in range(400)}
    for tensor in large.values():
        tensor.random_()
    ms = plain_ms(lambda: digest.digest_all(large.items()), 5)
    floor_s = 8e9 / w1.COPY_BYTES
    yield Row("digest of 400 tensors, 8 GB", ms=ms, floor_s=floor_s, note="wait included")


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "norm": norm_section,
    "swiglu": swiglu_section,
    "rope": rope_section,
    "packed": packed_section,
    "decode": decode_section,
    "sample": sample_section,
    "head": head_section,
    "linear": linear_section,
    "digest": digest_section,
}


if __name__ == "__main__":
    main()
