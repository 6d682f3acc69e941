"""RMS norm in Triton, forward and backward. One row a program, so its bits are its own."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.device import num_programs

_PROGRAMS_PER_SM = 4  # of the backward pass: each sums its rows' weight gradients


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `norm.rms_norm`."""
    y, _, _ = _Norm.apply(x_TD, None, weight_D, eps)
    return y


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `norm.add_rms_norm`, reading and writing each value once."""
    y, total, _ = _Norm.apply(x_TD, residual_TD, weight_D, eps)
    return y, total


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, residual_TD, weight_D, eps):
        x = x_TD.reshape(-1, x_TD.shape[-1])
        residual = None if residual_TD is None else residual_TD.reshape(x.shape)
        rows, width = x.shape
        y = x.new_empty(x.shape, dtype=weight_D.dtype)
        inverse = x.new_empty(rows, dtype=torch.float32)
        total = None if residual is None else residual.new_empty(x.shape)
        if rows:
            _forward[(rows,)](
                x, residual, weight_D, y, total, inverse, width, x.stride(0),
                0 if residual is None else residual.stride(0), eps,
                HAS_RESIDUAL=residual is not None, **_shape(width),
            )  # fmt: skip
        ctx.save_for_backward(x if total is None else total, weight_D, inverse)
        ctx.shape, ctx.branch_dtype = x_TD.shape, x_TD.dtype
        ctx.mark_non_differentiable(inverse)
        ctx.set_materialize_grads(False)
        return y.view(x_TD.shape), None if total is None else total.view(x_TD.shape), inverse

    @staticmethod
    def backward(ctx, grad, grad_total, _):
        x, weight, inverse = ctx.saved_tensors
        rows, width = x.shape
        if grad is None:
            return grad_total, grad_total, None, None
        grad = grad.reshape(rows, width)
        extra = None if grad_total is None else grad_total.reshape(rows, width)
        grad_x = x.new_empty(rows, width)
        # the sum may be wider than what was added to it, which gets a gradient in its own dtype
        is_wider = x.dtype != ctx.branch_dtype
        branch = x.new_empty(rows, width, dtype=ctx.branch_dtype) if is_wider else None
        programs = min(rows, num_programs(x.device, _PROGRAMS_PER_SM))
        partial = x.new_zeros(max(1, programs), width, dtype=torch.float32)
        if rows:
            _backward[(programs,)](
                grad, extra, x, weight, inverse, grad_x, branch, partial, rows, width,
                x.stride(0), grad.stride(0), 0 if extra is None else extra.stride(0),
                HAS_EXTRA=extra is not None, IS_WIDER=is_wider, **_shape(width),
            )  # fmt: skip
        grad_x = grad_x.view(ctx.shape)
        grad_branch = grad_x if branch is None else branch.view(ctx.shape)
        has_residual = ctx.needs_input_grad[1]
        grad_weight = partial.sum(0).to(weight.dtype)
        return grad_branch, grad_x if has_residual else None, grad_weight, None


def _shape(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


@triton.jit
def _forward(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, inverse_ptr, width, x_stride,
    residual_stride, eps, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0)
        total = (x.to(tl.float32) + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * width + column, total, mask=inside)
        wide = total.to(tl.float32)
    else:
        wide = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(inverse_ptr + row, inverse)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    # rounded before the weight, as Hugging Face decoders do
    normal = (wide * inverse).to(weight.dtype)
    y = (normal.to(tl.float32) * weight.to(tl.float32)).to(weight.dtype)
    tl.store(y_ptr + row * width + column, y, mask=inside)


@triton.jit
def _backward(
    grad_ptr, extra_ptr, x_ptr, weight_ptr, inverse_ptr, grad_x_ptr, branch_ptr, partial_ptr, rows,
    width, x_stride, grad_stride, extra_stride,
    HAS_EXTRA: tl.constexpr, IS_WIDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < width
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(start, tl.int64)
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=inside, other=0.0)
        grad = grad.to(tl.float32)
        inverse = tl.load(inverse_ptr + row)
        normal = x * inverse
        grad_weight += grad * normal
        scaled = grad * weight
        along = tl.sum(scaled * normal, axis=0) / width
        grad_x = (scaled - normal * along) * inverse
        if HAS_EXTRA:
            extra = tl.load(extra_ptr + row * extra_stride + column, mask=inside, other=0.0)
            grad_x += extra.to(tl.float32)
        tl.store(
            grad_x_ptr + row * width + column, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside
        )
        if IS_WIDER:
            narrow = grad_x.to(branch_ptr.dtype.element_ty)
            tl.store(branch_ptr + row * width + column, narrow, mask=inside)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * width + column, grad_weight, mask=inside)
