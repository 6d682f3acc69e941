"""SwiGLU of an interleaved gate and up projection."""

import torch
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` [..., F] of `gate_up` [..., 2F], even columns gate and odd columns up.

    Interleaved, so that tensor parallel is a plain row shard of the projection. fp32 inside, the
    result in `gate_up.dtype`. Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    return _Swiglu.apply(gate_up)


class _Swiglu(torch.autograd.Function):
    """Saves the projection only and recomputes the gate in the backward pass."""

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = _split(gate_up)
        return torch.nn.functional.silu(gate).mul_(up).to(gate_up.dtype)

    @staticmethod
    def backward(ctx, grad):
        (gate_up,) = ctx.saved_tensors
        gate, up = _split(gate_up)
        grad = grad.float()
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        pairs = torch.empty(*gate.shape, 2, dtype=gate_up.dtype, device=gate_up.device)
        pairs[..., 1] = grad * silu
        # d silu(g) / dg = s + silu * (1 - s)
        pairs[..., 0] = sigmoid.addcmul_(silu, 1 - sigmoid).mul_(up).mul_(grad)
        return pairs.flatten(-2)


def _split(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    pairs = gate_up.unflatten(-1, (-1, 2))
    return pairs[..., 0].float().contiguous(), pairs[..., 1].float().contiguous()
