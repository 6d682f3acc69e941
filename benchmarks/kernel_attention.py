"""Attention kernels checked and timed: packed training, decode over the paged cache."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import w1
from kernel_rows import (
    DEVICE,
    HEADS,
    KEY_HEADS,
    SIZE,
    Row,
    error_of,
    gradients,
    graph_ms,
    plain_ms,
    random,
)
from torch import Tensor

from tandem.kernels import attention, grouped, paged
from tandem.kernels.cuda import ordered
from tandem.kernels.device import has_flash_attention_4


def packed_section(is_sweep: bool) -> Iterator[Row]:
    for lengths in ([64, 777, 1, 300], [1280] * 12, [4096] * 4):
        total = sum(lengths)
        bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
        inputs = [random(total, n, SIZE).requires_grad_() for n in (HEADS, KEY_HEADS, KEY_HEADS)]
        out = attention.packed_attention(*inputs, bounds, max(lengths))
        grad = random(*out.shape)
        if total < 2000:
            theirs = [x.detach().cpu().float().requires_grad_() for x in inputs]
            wanted = attention.packed_attention(*theirs, bounds.cpu(), max(lengths))
            yield Row("packed_attention forward", error_of(out, wanted))
            pairs = zip(
                gradients([out], inputs, [grad]),
                gradients([wanted], theirs, [grad.cpu().float()]),
                strict=True,
            )
            yield Row("packed_attention gradients", max(error_of(a, b) for a, b in pairs))
            continue
        flops = sum(2 * HEADS * SIZE * length**2 for length in lengths)

        def forward(inputs=inputs, bounds=bounds, longest=max(lengths)) -> Tensor:
            return attention.packed_attention(*inputs, bounds, longest)

        with torch.no_grad():
            ms = plain_ms(forward)
        name = f"packed_attention {len(lengths)} x {lengths[0]}"
        note = f"{flops / ms / 1e9:.0f} TFLOP/s"
        yield Row(f"{name} forward", ms=ms, floor_s=flops / w1.MATMUL_FLOPS, note=note)
        ms = plain_ms(lambda: gradients([out], inputs, [grad]))  # noqa: B023
        note = f"{2.5 * flops / ms / 1e9:.0f} TFLOP/s"
        yield Row(f"{name} backward", ms=ms, floor_s=2.5 * flops / w1.MATMUL_FLOPS, note=note)
        if is_sweep and lengths[0] == 1280:
            plain = [x.detach() for x in inputs]
            yield from tilings(name, plain, bounds, max(lengths), flops)


def tilings(name: str, inputs: list[Tensor], bounds: Tensor, longest: int, flops: float):
    """The forward pass by its tiling, which changes no bit."""
    wanted = attention.packed_attention(*inputs, bounds, longest)
    for how in ((128, 8, 2), (64, 4, 2)):

        def forward(how=how) -> Tensor:
            return ordered.attend(*inputs, bounds, longest, want_lse=True, how=how)[0]

        same = torch.equal(forward(), wanted)
        ms = plain_ms(forward)
        tile, warps, stages = how
        note = f"{flops / ms / 1e9:.0f} TFLOP/s, tile {tile}, {warps} warps, {stages} stages"
        yield Row(f"{name} sweep", 0.0 if same else 1.0, 0.0, ms, flops / w1.MATMUL_FLOPS, note)


class Decode(NamedTuple):
    """A step of decoding: groups of rows behind a prompt, each row with its own suffix."""

    q_RNH: Tensor
    k_cache: Tensor
    v_cache: Tensor
    prefix_table_GB: Tensor
    prefix_lengths_G: Tensor
    bounds_G: Tensor
    suffix_table_RB: Tensor
    suffix_lengths_R: Tensor

    def whole(self) -> tuple[Tensor, ...]:
        """The arguments of `paged_attention`: every row with its prefix before its suffix."""
        per_group = self.bounds_G.diff().long()
        table = self.prefix_table_GB.repeat_interleave(per_group, 0)
        lengths = self.prefix_lengths_G.repeat_interleave(per_group) + self.suffix_lengths_R
        table = torch.cat([table, self.suffix_table_RB], 1).contiguous()
        return (self.q_RNH, self.k_cache, self.v_cache, table, lengths.int())

    def floor_s(self, is_grouped: bool) -> float:
        per_group = self.bounds_G.diff() if not is_grouped else (self.bounds_G.diff() > 0).int()
        tokens = (self.prefix_lengths_G * per_group).sum() + self.suffix_lengths_R.sum()
        return 4 * float(tokens) * KEY_HEADS * SIZE / w1.COPY_BYTES


def decode_case(
    groups: int, per_group: int, prefix: int, suffixes: Tensor, block: int = 128
) -> Decode:
    rows = groups * per_group
    prefix_blocks, suffix_blocks = prefix // block, -(-int(suffixes.max()) // block)
    count = groups * prefix_blocks + rows * suffix_blocks
    order = torch.randperm(count, device=DEVICE).int()
    split = groups * prefix_blocks
    return Decode(
        random(rows, HEADS, SIZE),
        random(count, block, KEY_HEADS, SIZE),
        random(count, block, KEY_HEADS, SIZE),
        order[:split].view(groups, prefix_blocks),
        torch.full((groups,), prefix, dtype=torch.int32, device=DEVICE),
        (torch.arange(groups + 1, device=DEVICE) * per_group).int(),
        order[split:].view(rows, suffix_blocks),
        suffixes.to(DEVICE, torch.int32),
    )


def decode_cases() -> Iterator[tuple[str, Decode]]:
    def same(rows: int, length: int) -> Tensor:
        return torch.full((rows,), length)

    yield "w1 at 512", decode_case(32, 8, 256, same(256, 512))
    yield "w1 at 1024", decode_case(32, 8, 256, same(256, 1024))
    yield "64 rows at 512", decode_case(8, 8, 256, same(64, 512))
    yield "512 rows at 512", decode_case(64, 8, 256, same(512, 512))
    yield "mixed 256", decode_case(256, 1, 128, torch.randint(100, 1900, (256,)))
    tail = torch.cat([torch.randint(8000, 8192, (4,)), torch.randint(100, 300, (60,))])
    yield "tail: 4 of 8k, 60 short", decode_case(64, 1, 128, tail)
    yield "8 rows of 8k", decode_case(1, 8, 256, same(8, 8000))


def decode_section(_: bool) -> Iterator[Row]:
    small = decode_case(3, 5, 256, torch.randint(1, 1300, (15,)))
    wanted = paged.paged_attention(*(x.cpu().float() if x.is_floating_point() else x.cpu()
                                     for x in small.whole()))  # fmt: skip
    for name, function in decoders():
        arguments = tuple(small) if name == "grouped" else small.whole()
        yield Row(f"decode {name}", error_of(function(*arguments), wanted))
    for case_name, case in decode_cases():
        for name, function in decoders():
            arguments = tuple(case) if name == "grouped" else case.whole()
            ms = graph_ms(lambda f=function, a=arguments: f(*a))
            floor_s = case.floor_s(name == "grouped")
            note = f"{floor_s * w1.COPY_BYTES / ms / 1e6:.0f} GB/s"
            yield Row(f"decode {case_name}: {name}", ms=ms, floor_s=floor_s, note=note)
    slots = torch.randperm(100 * 128, device=DEVICE)[:256]
    cache = [random(100, 128, KEY_HEADS, SIZE) for _ in range(2)]
    new = [random(256, KEY_HEADS, SIZE) for _ in range(2)]
    ms = graph_ms(lambda: paged.write_cache(*new, *cache, slots))
    same = all(torch.equal(c.flatten(0, 1)[slots], n) for c, n in zip(cache, new, strict=True))
    yield Row("write_cache 256", 0.0 if same else 1.0, ms=ms)


def decoders() -> Iterator[tuple[str, Callable[..., Tensor]]]:
    yield "rows", paged.paged_attention
    yield "grouped", grouped.grouped_paged_attention
    if has_flash_attention_4():
        from flash_attn.cute import flash_attn_varlen_func

        def flash_decode(q, k_cache, v_cache, table, lengths) -> Tensor:
            bounds = torch.arange(len(q) + 1, device=q.device, dtype=torch.int32)
            pages = {"page_table": table, "seqused_k": lengths, "max_seqlen_q": 1}
            out = flash_attn_varlen_func(
                q, k_cache, v_cache, cu_seqlens_q=bounds, causal=True, **pages
            )
            return out[0] if isinstance(out, tuple) else out

        yield "flash 4", flash_decode
