"""SwiGLU in Triton, forward and backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def swiglu(gate_up: Tensor) -> Tensor:
    """As `swiglu.swiglu`."""
    return _Swiglu.apply(gate_up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        gate_up = gate_up.contiguous()
        y = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        if y.numel():
            grid = (triton.cdiv(y.numel(), _BLOCK),)
            _forward[grid](gate_up, y, y.numel(), BLOCK=_BLOCK, num_warps=4)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    def backward(ctx, grad):
        (gate_up,) = ctx.saved_tensors
        grad, result = grad.contiguous(), torch.empty_like(gate_up)
        if grad.numel():
            grid = (triton.cdiv(grad.numel(), _BLOCK),)
            _backward[grid](gate_up, grad, result, grad.numel(), BLOCK=_BLOCK, num_warps=4)
        return result


@triton.jit
def _load_pairs(gate_up_ptr, first, size, BLOCK: tl.constexpr):
    pair = first * 2 + tl.arange(0, 2 * BLOCK)
    values = tl.load(gate_up_ptr + pair, mask=pair < size * 2, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(values, (BLOCK, 2)))


@triton.jit
def _forward(gate_up_ptr, y_ptr, size, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    place = first + tl.arange(0, BLOCK)
    gate, up = _load_pairs(gate_up_ptr, first, size, BLOCK)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=place < size)


@triton.jit
def _backward(gate_up_ptr, grad_ptr, result_ptr, size, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    place = first + tl.arange(0, BLOCK)
    gate, up = _load_pairs(gate_up_ptr, first, size, BLOCK)
    grad = tl.load(grad_ptr + place, mask=place < size, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    # d silu(g) / dg = s + silu * (1 - s)
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    pairs = tl.reshape(tl.join(grad_gate, grad * silu), (2 * BLOCK,))
    pair = first * 2 + tl.arange(0, 2 * BLOCK)
    tl.store(result_ptr + pair, pairs.to(result_ptr.dtype.element_ty), mask=pair < size * 2)
