"""Where decode and the training forward part: the same tokens through both, layer by layer.

Decode gets the keys and values of the training forward for all tokens but the newest, so what
differs comes from this one step. Every kind of packed attention meets every kind of decode.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tandem.kernels.attention import packed_attention
from tandem.kernels.device import has_flash_attention_4
from tandem.kernels.grouped import grouped_paged_attention
from tandem.kernels.head import head_logits, token_logprobs
from tandem.kernels.paged import paged_attention, write_cache
from tandem.kernels.sample import choose_tokens
from tandem.models.decoder import Decoder

BLOCK = 128
GROUP = 8


@dataclass
class Trace:
    """What one path computed for the newest token of every row, on its way."""

    seen: dict[str, Tensor] = field(default_factory=dict)

    def note(self, layer: int, **parts: Tensor) -> None:
        for name, value in parts.items():
            key = f"{layer:02d} {name}"
            earlier = self.seen.get(key)
            self.seen[key] = value.clone() if earlier is None else torch.cat([earlier, value])


class Case:
    """Rows of random tokens behind shared prompts, and a cache for them."""

    def __init__(self, decoder: Decoder, rows: int, prompt: int, response: int) -> None:
        device, shape = decoder.head_weight.device, decoder.shape
        self.decoder, self.rows, self.length = decoder, rows, prompt + response
        draw = torch.Generator(device).manual_seed(1)
        prompts = torch.randint(
            shape.vocab, (rows // GROUP, prompt), device=device, generator=draw
        ).repeat_interleave(GROUP, 0)
        tail = torch.randint(shape.vocab, (rows, response), device=device, generator=draw)
        self.tokens_RT = torch.cat([prompts, tail], 1)
        self.targets_R = torch.randint(shape.vocab, (rows,), device=device, generator=draw)
        self.shared, blocks = prompt // BLOCK, -(-self.length // BLOCK)
        own = blocks - self.shared
        self.table_RB = torch.zeros(rows, blocks, dtype=torch.int32, device=device)
        ids = torch.arange(rows // GROUP * self.shared + rows * own, device=device).int()
        split = rows // GROUP * self.shared
        self.table_RB[:, : self.shared] = (
            ids[:split].view(-1, self.shared).repeat_interleave(GROUP, 0)
        )
        self.table_RB[:, self.shared :] = ids[split:].view(rows, own)
        heads = (shape.num_key_heads, shape.head_size)
        self.cache = torch.zeros(
            shape.num_layers, 2, len(ids), BLOCK, *heads, dtype=decoder.head_weight.dtype,
            device=device,
        )  # fmt: skip
        self.bounds_G = torch.arange(0, rows + 1, GROUP, device=device).int()

    @torch.no_grad()
    def packed(self, attention: Callable[..., Tensor], bent: bool = False) -> Trace:
        """The training forward of eight rows at a time; fills the cache."""
        trace, device = Trace(), self.tokens_RT.device
        for start in range(0, self.rows, GROUP):
            rows = slice(start, start + GROUP)
            place = torch.arange(self.length, device=device)
            slots = self.table_RB[rows].long()[:, place // BLOCK] * BLOCK + place % BLOCK
            bounds = torch.arange(GROUP + 1, device=device).int() * self.length
            last = bounds[1:].long() - 1
            # eight rows write a shared block with the same values: once is enough
            slots[1:, : self.shared * BLOCK] = -1

            def attend(
                layer, q, k, v, bounds=bounds, last=last, slots=slots.flatten(), start=start
            ) -> Tensor:
                write_cache(k, v, *self.cache[layer], slots)
                out = attention(q, k, v, bounds, self.length)
                if bent and layer == 0:  # what one bit does to all that follows
                    bits = {2: torch.int16, 4: torch.int32}[out.element_size()]
                    out.view(bits)[last, 0, 0] ^= 1
                trace.note(layer, q=q[last], k=k[last], v=v[last], attended=out[last])
                return out

            tokens_T = self.tokens_RT[rows].flatten()
            hidden = self.decoder(tokens_T, place.repeat(GROUP), attend)
            trace.note(99, hidden=hidden[last])
        return trace

    @torch.no_grad()
    def decoded(self, attention: Callable[..., Tensor], is_grouped: bool) -> Trace:
        """One decode step of all rows over the cache that `packed` left."""
        trace, device = Trace(), self.tokens_RT.device
        place = self.length - 1
        slots = self.table_RB[:, place // BLOCK].long() * BLOCK + place % BLOCK
        lengths = torch.full((self.rows,), self.length, dtype=torch.int32, device=device)
        if is_grouped:
            prefix = torch.full_like(self.bounds_G[1:], self.shared * BLOCK)
            where: tuple[Any, ...] = (
                self.table_RB[::GROUP, : self.shared].contiguous(),
                prefix,
                self.bounds_G,
                self.table_RB[:, self.shared :].contiguous(),
                lengths - self.shared * BLOCK,
            )
        else:
            where = (self.table_RB, lengths)

        def attend(layer, q, k, v) -> Tensor:
            write_cache(k, v, *self.cache[layer], slots)
            out = attention(q, *self.cache[layer], *where)
            trace.note(layer, q=q, k=k, v=v, attended=out)
            return out

        positions = torch.full((self.rows,), place, device=device)
        hidden = self.decoder(self.tokens_RT[:, -1], positions, attend)
        trace.note(99, hidden=hidden)
        return trace


def parts(decoder: Decoder, rows: int, scale: int) -> Iterator[dict]:
    """A line for every pair of paths: where they first differ, and by how much at the end."""
    case = Case(decoder, rows, max(BLOCK, 256 // scale), max(9, 300 // scale))
    for packed_name, packed in packed_kinds(decoder):
        trainers = case.packed(packed)
        head = {"rows": rows, "packed": packed_name}
        yield {
            **head,
            "decode": "itself, one bit bent",
            **gap(case, trainers, case.packed(packed, True)),
        }
        case.packed(packed)
        for name, decode, is_grouped in DECODE_KINDS:
            try:
                found = gap(case, trainers, case.decoded(decode, is_grouped))
            except Exception as fault:  # a kernel that does not run is a result here
                found = {"first": f"{type(fault).__name__}: {str(fault)[:200]}"}
            yield {**head, "decode": name, **found}


@torch.no_grad()
def gap(case: Case, one: Trace, other: Trace) -> dict:
    """Where two traces first differ, and the differences of hidden states and log-probs."""
    first, share = "nowhere", 0.0
    for key in sorted(one.seen):
        a, b = one.seen[key].flatten(1), other.seen[key].flatten(1)
        if not torch.equal(a, b):
            first, share = key, float((a != b).any(1).float().mean())
            break
    a, b = one.seen["99 hidden"], other.seen["99 hidden"]
    weight = case.decoder.head_weight
    scores = [token_logprobs(x, weight, case.targets_R)[0] for x in (a, b)]
    difference = (scores[0] - scores[1]).abs()
    return {
        "first": first,
        "of_rows": share,
        "hidden": float((a.float() - b.float()).norm() / a.float().norm()),
        "mean": f"{float(difference.mean()):.2e}",
        "max": f"{float(difference.max()):.2e}",
        "equal": float((difference == 0).float().mean()),
        "sampler": sampler_gap(case, a),
    }


@torch.no_grad()
def sampler_gap(case: Case, hidden: Tensor) -> float:
    """The share of rows whose log-prob the sampler and the head give with other bits."""
    rows, weight = len(hidden), case.decoder.head_weight
    u = torch.rand(rows, device=hidden.device).double()
    warmth = torch.ones(rows, device=hidden.device)
    tokens, logprobs = choose_tokens(head_logits(hidden, weight), u, warmth, None, None)
    again = token_logprobs(hidden.repeat(3, 1), weight, tokens.repeat(3))[0][:rows]
    return float((again != logprobs).float().mean())


def packed_kinds(decoder: Decoder) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    yield "as trained", packed_attention
    if decoder.head_weight.is_cuda and has_flash_attention_4():
        from flash_attn.cute import flash_attn_varlen_func

        def flash(q, k, v, bounds, longest) -> Tensor:
            ends = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds}
            most = {"max_seqlen_q": longest, "max_seqlen_k": longest}
            out = flash_attn_varlen_func(q, k, v, **ends, **most, causal=True)
            return out[0] if isinstance(out, tuple) else out

        yield "flash 4", flash


DECODE_KINDS = (
    ("grouped", grouped_paged_attention, True),
    ("row by row", paged_attention, False),
)
