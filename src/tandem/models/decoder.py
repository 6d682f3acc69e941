"""The decoder that trainer and engine both run: attention is a function handed in.

Weights are laid out for tensor parallelism by plain row shards: the rows of `qkv` are grouped by
key head (its query heads, its key, its value), those of `gate_up` alternate gate and up.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tandem.contracts import Attend
from tandem.kernels.norm import add_rms_norm, rms_norm
from tandem.kernels.rope import qkv_rope, rope_table
from tandem.kernels.swiglu import swiglu
from tandem.models.shape import Shape, num_parameters

INIT_STD = 0.02
"""Standard deviation of random matrices."""

CPU_DRAW_LIMIT = 2**28
"""Models up to this many parameters draw random weights on the CPU: same bits on every device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recompute:
    """Which layers forget their activations and compute them again in the backward pass.

    uniform: all, in runs of `num_layers` (one saved tensor a run). block: only the first
    `num_layers`, one by one. The names and meaning are Megatron's.
    """

    method: str = "uniform"
    num_layers: int = 1

    def __post_init__(self) -> None:
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

    def __init__(self, shape: Shape, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.index = shape, index
        query_width = shape.num_heads * shape.head_size
        qkv_width = query_width + 2 * shape.num_key_heads * shape.head_size
        self.norm1 = Norm(shape.width, dtype)
        self.qkv = _linear(shape.width, qkv_width, dtype, bias=shape.qkv_bias)
        self.q_norm = Norm(shape.head_size, dtype) if shape.qk_norm else None
        self.k_norm = Norm(shape.head_size, dtype) if shape.qk_norm else None
        self.out = _linear(query_width, shape.width, dtype)
        self.norm2 = Norm(shape.width, dtype)
        self.gate_up = _linear(shape.width, 2 * shape.ffn, dtype)
        self.down = _linear(shape.ffn, shape.width, dtype)

    def forward(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        positions_T: Tensor,
        table: tuple[Tensor, Tensor],
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        """What this block adds and the stream it adds to; the sum is left to the next norm."""
        eps = self.shape.eps
        if residual_TD is None:
            y_TD, residual_TD = rms_norm(x_TD, self.norm1.weight, eps), x_TD
        else:
            y_TD, residual_TD = add_rms_norm(x_TD, residual_TD, self.norm1.weight, eps)
        x_TD = self.out(self._attended(self.qkv(y_TD), positions_T, table, attend))
        y_TD, residual_TD = add_rms_norm(x_TD, residual_TD, self.norm2.weight, eps)
        return self.down(swiglu(self.gate_up(y_TD))), residual_TD

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
    """A causal language model over packed tokens. Built with uninitialised weights."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.width, dtype=dtype, device="meta")
        self.layers = nn.ModuleList(Layer(shape, i, dtype) for i in range(shape.num_layers))
        self.norm = Norm(shape.width, dtype)
        self.head = None if shape.tied else _linear(shape.width, shape.vocab, dtype)
        # no buffers: a cast of the model to bfloat16 must not touch the angles
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        if torch.device(device).type != "meta":
            self.to_empty(device=device)

    @property
    def head_weight(self) -> Tensor:
        """The `[V, D]` matrix of the head: the embedding when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attend: Attend,
        recompute: Recompute | None = None,
    ) -> Tensor:
        """The hidden states `[T, D]` after the final norm; `head_weight` makes logits of them.

        Positions count from 0 in each sequence and must lie below `shape.max_positions`.
        """
        table = self.rope_table(tokens_T.device)

        def run(x_TD: Tensor, residual_TD: Tensor | None, first: int, last: int):
            for i in range(first, last):
                x_TD, residual_TD = self.layers[i](x_TD, residual_TD, positions_T, table, attend)
            return x_TD, residual_TD

        def run_summed(x_TD: Tensor, first: int, last: int) -> Tensor:
            x_TD, residual_TD = run(x_TD, None, first, last)
            return x_TD + residual_TD

        # the stream that layers add to is fp32: rounded at every sum, the forward passes of trainer
        # and engine would drift apart
        x_TD, residual_TD = self.embed(tokens_T).float(), None
        if recompute is None or not torch.is_grad_enabled():
            x_TD, residual_TD = run(x_TD, residual_TD, 0, len(self.layers))
        else:
            for first, last, is_recomputed in recompute.runs(len(self.layers)):
                if is_recomputed:
                    # one tensor is kept at a boundary, not two: the sum is made before it
                    x_TD = checkpoint(
                        run_summed, x_TD, first, last, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    x_TD, residual_TD = run(x_TD, residual_TD, first, last)
        if residual_TD is None:
            return rms_norm(x_TD, self.norm.weight, self.shape.eps)
        return add_rms_norm(x_TD, residual_TD, self.norm.weight, self.shape.eps)[0]

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """`[T, V]` logits in the model's dtype; for few rows only, the trainer never makes them."""
        return functional.linear(hidden_TD, self.head_weight)

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

        Each tensor is a function of (seed, its name), drawn in float32 and rounded. Up to
        `CPU_DRAW_LIMIT` parameters the bits are the same on every device; a larger model draws on
        the device it lives on and repeats only there.
        """
        draws_on_cpu = num_parameters(self.shape) <= CPU_DRAW_LIMIT
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1)
            else:
                device = torch.device("cpu") if draws_on_cpu else parameter.device
                generator = torch.Generator(device).manual_seed(_tensor_seed(seed, name))
                drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device)
                parameter.copy_(drawn.normal_(0.0, INIT_STD, generator=generator))


def _linear(inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype, device="meta")


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # a generator takes a signed 64-bit seed
