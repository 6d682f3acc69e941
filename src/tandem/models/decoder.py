"""The decoder that trainer and engine both run: attention is a function handed in.

Weights are laid out for tensor parallelism by plain row shards: the rows of `qkv` are grouped by
key head (its query heads, its key, its value), those of `gate_up` alternate gate and up. What a
process holds of them is its `Part`; collectives over its axes are where they are called.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tandem.contracts import Attend
from tandem.kernels.head import head_logits
from tandem.kernels.linear import linear
from tandem.kernels.norm import add_rms_norm, rms_norm
from tandem.kernels.rope import qkv_rope, rope_table
from tandem.kernels.swiglu import swiglu
from tandem.models.column import column_linear
from tandem.models.experts import NO_ROUTING, Experts, Routing
from tandem.models.part import (
    WHOLE,
    Part,
    Shard,
    gradient_axes,
    leave,
    shard_of,
    share,
)
from tandem.models.shape import Shape, num_parameters
from tandem.parallel.collectives import all_rows, copy_in

INIT_STD = 0.02
"""Standard deviation of random matrices."""

CPU_DRAW_LIMIT = 2**28
"""Models up to this many parameters draw random weights on the CPU: same bits on every device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recompute:
    """Which activations are forgotten, and computed again in the backward pass.

    full, uniform: those of all layers, in runs of `num_layers` (one saved tensor a run). full,
    block: of the first `num_layers`, one by one. The names and meaning are Megatron's. selective:
    of every layer what SwiGLU gives, its largest tensor that costs no matrix product; Megatron
    forgets the scores of attention, which no attention kernel here keeps.
    """

    granularity: str = "full"
    method: str = "uniform"
    num_layers: int = 1

    def __post_init__(self) -> None:
        assert self.granularity in ("full", "selective"), f"no recompute {self.granularity!r}"
        assert self.method in ("uniform", "block"), f"no recompute method {self.method!r}"
        assert self.num_layers >= 1, f"recompute of {self.num_layers} layers means nothing"

    def runs(self, num_layers: int) -> Iterator[tuple[int, int, bool]]:
        """(first layer, last layer + 1, whether it is recomputed) for a stack of `num_layers`."""
        size = self.num_layers if self.method == "uniform" else 1
        for first in range(0, num_layers, size):
            is_recomputed = self.method == "uniform" or first < self.num_layers
            yield first, min(first + size, num_layers), is_recomputed


class Norm(nn.Module):
    """The weight of an RMS norm; the layer hands it to a kernel."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device="meta"))


class Layer(nn.Module):
    """One block: attention and feed-forward, each behind a norm."""

    def __init__(self, shape: Shape, index: int, dtype: torch.dtype, part: Part = WHOLE) -> None:
        super().__init__()
        self.shape, self.index, self.part = shape, index, part
        tensor = part.mesh.tensor.size
        query_width = shape.num_heads * shape.head_size // tensor
        qkv_width = query_width + 2 * shape.num_key_heads * shape.head_size // tensor
        self.norm1 = Norm(shape.width, dtype)
        self.qkv = _linear(shape.width, qkv_width, dtype, bias=shape.qkv_bias)
        self.q_norm = Norm(shape.head_size, dtype) if shape.qk_norm else None
        self.k_norm = Norm(shape.head_size, dtype) if shape.qk_norm else None
        self.out = _linear(query_width, shape.width, dtype)
        self.norm2 = Norm(shape.width, dtype)
        # a layer has either experts or one feed-forward block
        self.experts = Experts(shape, index, dtype, part) if shape.has_experts(index) else None
        if self.experts is None:
            self.gate_up = _linear(shape.width, 2 * shape.ffn // tensor, dtype)
            self.down = _linear(shape.ffn // tensor, shape.width, dtype)

    def forward(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        positions_T: Tensor,
        table: tuple[Tensor, Tensor],
        attend: Attend,
        forgets_swiglu: bool = False,
        routing: Routing = NO_ROUTING,
    ) -> tuple[Tensor, Tensor]:
        """What this block adds and the stream it adds to; the sum is left to the next norm."""
        eps = self.shape.eps
        if residual_TD is None:
            y_TD, residual_TD = rms_norm(x_TD, self.norm1.weight, eps), x_TD
        else:
            y_TD, residual_TD = add_rms_norm(x_TD, residual_TD, self.norm1.weight, eps)
        qkv_TC = column_linear(self.qkv, y_TD, self.part)
        mixed_TD = self._attended(qkv_TC, positions_T, table, attend)
        x_TD = leave(linear(mixed_TD, self.out.weight), self.part)
        y_TD, residual_TD = add_rms_norm(x_TD, residual_TD, self.norm2.weight, eps)
        if self.experts is not None:
            return self.experts(y_TD, routing, forgets_swiglu), residual_TD
        gate_up = column_linear(self.gate_up, y_TD, self.part)
        if forgets_swiglu:
            # the backward pass stops computing again where the input of `down` is there
            x_TD = checkpoint(self._fed, gate_up, use_reentrant=False, preserve_rng_state=False)
        else:
            x_TD = self._fed(gate_up)
        return leave(x_TD, self.part), residual_TD

    def _fed(self, gate_up: Tensor) -> Tensor:
        return linear(swiglu(gate_up), self.down.weight)

    def _attended(
        self, qkv_TC: Tensor, positions_T: Tensor, table: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        shape = self.shape
        # counted from the tensor, so that a row shard of qkv runs as it is
        key_heads = qkv_TC.shape[-1] // ((shape.group_size + 2) * shape.head_size)
        q_TNH, k_TKH, v_TKH = qkv_rope(
            qkv_TC,
            positions_T,
            *table,
            key_heads * shape.group_size,
            key_heads,
            shape.head_size,
            None if self.q_norm is None else self.q_norm.weight,
            None if self.k_norm is None else self.k_norm.weight,
            shape.eps,
        )
        return attend(self.index, q_TNH, k_TKH, v_TKH).flatten(-2)


class Decoder(nn.Module):
    """A causal language model over packed tokens, or a part of one. Its weights are uninitialised.

    Layers are named by their number in the whole model, whatever the part.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device | str,
        part: Part = WHOLE,
    ) -> None:
        super().__init__()
        self.shape, self.part = shape, part
        self.vocab_start, num_tokens = share(shape.vocab, part.mesh.tensor)
        has_embed = part.is_first or (part.is_last and shape.tied)
        has_head = part.is_last and not shape.tied
        self.embed = _embedding(num_tokens, shape.width, dtype) if has_embed else None
        self.layers = nn.ModuleList()
        for index in range(shape.num_layers) if part.layers is None else part.layers:
            self.layers.add_module(str(index), Layer(shape, index, dtype, part))
        self.norm = Norm(shape.width, dtype) if part.is_last else None
        self.head = _linear(shape.width, num_tokens, dtype) if has_head else None
        # no buffers: a cast of the model to bfloat16 must not touch the angles
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        if torch.device(device).type != "meta":
            # as `to_empty`, which imports sympy
            self._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def head_weight(self) -> Tensor:
        """The `[V, D]` matrix of the head: the embedding when tied; rows of it from `vocab_start`
        on where tensor ranks share it."""
        head = self.embed if self.head is None else self.head
        assert head is not None and self.part.is_last, "the head is on the last stage"
        return head.weight

    @property
    def num_key_heads(self) -> int:
        """Key heads here."""
        return self.shape.num_key_heads // self.part.mesh.tensor.size

    def for_sampling(self) -> "Decoder":
        """The decoder over the same parameters that takes any number of rows: without sequence
        parallelism, which wants as many on every tensor rank."""
        if not self.part.splits_rows:
            return self
        part = replace(self.part, sequence_parallel=False)
        whole = Decoder(self.shape, self.dtype, "meta", part)
        whole.load_state_dict(dict(self.named_parameters()), assign=True)
        return whole

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attend: Attend,
        recompute: Recompute | None = None,
        stream_TD: Tensor | None = None,
        routing: Routing = NO_ROUTING,
    ) -> Tensor:
        """The hidden states `[T, D]` after the final norm; `head_weight` makes logits of them.

        Positions count from 0 in each sequence and must lie below `shape.max_positions`. A stage
        that is not the first takes the stream of the one before it, one that is not the last gives
        it instead of hidden states: fp32 `[T, D]`, or this rank's T / tensor rows of it with
        sequence parallelism. Hidden states are always all rows, equal on all tensor ranks.
        """
        table = self.rope_table(positions_T.device)
        layers = list(self.layers)
        forgets_swiglu = recompute is not None and recompute.granularity == "selective"

        def run(x_TD: Tensor, residual_TD: Tensor | None, first: int, last: int):
            for layer in layers[first:last]:
                x_TD, residual_TD = layer(
                    x_TD, residual_TD, positions_T, table, attend, forgets_swiglu, routing
                )
            return x_TD, residual_TD

        def run_summed(x_TD: Tensor, first: int, last: int) -> Tensor:
            x_TD, residual_TD = run(x_TD, None, first, last)
            return x_TD + residual_TD

        assert (stream_TD is None) == self.part.is_first, "the first stage alone takes no stream"
        # the stream that layers add to is fp32: rounded at every sum, the forward passes of trainer
        # and engine would drift apart
        x_TD = self._embedded(tokens_T).float() if stream_TD is None else stream_TD
        residual_TD = None
        if recompute is None or forgets_swiglu or not torch.is_grad_enabled():
            x_TD, residual_TD = run(x_TD, residual_TD, 0, len(layers))
        else:
            for first, last, is_recomputed in recompute.runs(len(layers)):
                if is_recomputed:
                    # one tensor is kept at a boundary, not two: the sum is made before it
                    x_TD = checkpoint(
                        run_summed, x_TD, first, last, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    x_TD, residual_TD = run(x_TD, residual_TD, first, last)
        return self._finished(x_TD, residual_TD)

    def _embedded(self, tokens_T: Tensor) -> Tensor:
        assert self.embed is not None, "the embedding is on the first stage"
        if self.part.mesh.tensor.size == 1:
            return self.embed(tokens_T)
        row_T = tokens_T - self.vocab_start
        is_elsewhere_T = (row_T < 0) | (row_T >= self.embed.num_embeddings)
        x_TD = self.embed(row_T.masked_fill(is_elsewhere_T, 0))
        return leave(x_TD.masked_fill(is_elsewhere_T[:, None], 0), self.part)

    def _finished(self, x_TD: Tensor, residual_TD: Tensor | None) -> Tensor:
        """The hidden states of the last stage, the stream of any other."""
        if self.norm is None:
            return x_TD if residual_TD is None else x_TD + residual_TD
        if residual_TD is None:
            hidden_TD = rms_norm(x_TD, self.norm.weight, self.shape.eps)
        else:
            hidden_TD, _ = add_rms_norm(x_TD, residual_TD, self.norm.weight, self.shape.eps)
        return all_rows(hidden_TD, self.part.mesh.tensor) if self.part.splits_rows else hidden_TD

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """`[T, V]` logits in the model's dtype; for few rows only, the trainer never makes them."""
        hidden_TD = copy_in(hidden_TD, self.part.mesh.tensor)
        return self._all_tokens(functional.linear(hidden_TD, self.head_weight))

    def head_logits(self, hidden_RD: Tensor, invariant: bool = False) -> Tensor:
        """Logits `[R, V]` in fp32, as `kernels.head.head_logits` gives them; no gradient."""
        return self._all_tokens(head_logits(hidden_RD, self.head_weight, invariant))

    def _all_tokens(self, logits: Tensor) -> Tensor:
        """The logits of all tokens, from this rank's columns."""
        tensor, vocab = self.part.mesh.tensor, self.shape.vocab
        if tensor.size == 1:
            return logits
        missing = -(-vocab // tensor.size) - logits.shape[-1]  # of the last rank
        columns = all_rows(functional.pad(logits, (0, missing)).t(), tensor)[:vocab]
        return columns.t().contiguous()  # kernels read a row of logits from its beginning

    def shards(self) -> dict[str, Shard]:
        """What every parameter here is of the whole model's, by name."""
        named = self.named_parameters()
        return {name: shard_of(name, p.shape, self.shape, self.part.mesh) for name, p in named}

    def gradient_axes(self) -> dict[str, tuple[str, ...]]:
        """The mesh's axes over which the gradient of every parameter is a sum, by name."""
        names = [name for name, _ in self.named_parameters()]
        return {name: gradient_axes(name, self.part, tied=self.shape.tied) for name in names}

    def rope_table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[max_positions, H / 2]` in float32 on `device`, made once."""
        if device not in self._tables:
            shape = self.shape
            scaling = None if shape.rope_scaling is None else dict(shape.rope_scaling)
            # an engine may be the first to ask, and autograd takes no inference tensors later
            with torch.inference_mode(False):
                self._tables[device] = rope_table(
                    shape.head_size, shape.max_positions, shape.rope_theta, scaling, device
                )
        return self._tables[device]

    @torch.no_grad()
    def init_random(self, seed: int) -> None:
        """Fills matrices from normal(0, 0.02), norms with 1 and biases with 0.

        Each tensor is a function of (seed, its name), drawn whole in float32, then cut to what this
        process holds and rounded. Up to `CPU_DRAW_LIMIT` parameters the bits are the same on every
        device; a larger model draws on the device it lives on and repeats only there.
        """
        draws_on_cpu = num_parameters(self.shape) <= CPU_DRAW_LIMIT
        shards = self.shards()
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1)
            else:
                device = torch.device("cpu") if draws_on_cpu else parameter.device
                generator = torch.Generator(device).manual_seed(_tensor_seed(seed, name))
                shard = shards[name]
                drawn = torch.empty(shard.global_shape, dtype=torch.float32, device=device)
                parameter.copy_(shard.of(drawn.normal_(0.0, INIT_STD, generator=generator)))


def _linear(inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype, device="meta")


def _embedding(tokens: int, width: int, dtype: torch.dtype) -> nn.Embedding:
    # one that draws first weights, if on no device, imports torch's compiler: two seconds
    empty_VD = torch.empty(tokens, width, dtype=dtype, device="meta")
    return nn.Embedding.from_pretrained(empty_VD, freeze=False)


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # a generator takes a signed 64-bit seed
