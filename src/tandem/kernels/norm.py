"""RMS norm, alone and with the residual sum before it."""

import torch
from torch import Tensor

from tandem.kernels.device import is_fused


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The rows of `x_TD` divided by their root mean square, times `weight_D`, in `weight_D.dtype`.

    Statistics are fp32; the normalised row is rounded to that dtype before the weight multiplies
    it, as Hugging Face decoders do. Any number of leading axes. The bits of a row do not depend on
    the other rows. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    if is_fused(x_TD):
        from tandem.kernels.cuda import norm as fused

        return fused.rms_norm(x_TD, weight_D, eps)
    if torch.is_grad_enabled() and (x_TD.requires_grad or weight_D.requires_grad):
        return _RmsNorm.apply(x_TD, weight_D, eps)
    return _normalise(x_TD, weight_D, eps)[0]


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The norm of `x_TD + residual_TD` in `weight_D.dtype`, and that sum in the wider dtype.

    A residual in fp32 is not rounded at every sum: two forward passes whose products differ in
    their last bits then stay several times closer to each other.
    """
    if is_fused(x_TD):
        from tandem.kernels.cuda import norm as fused

        return fused.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    total_TD = x_TD + residual_TD
    return rms_norm(total_TD, weight_D, eps), total_TD


class _RmsNorm(torch.autograd.Function):
    """Saves the input and one number a row; autograd of the formula would save three copies."""

    @staticmethod
    def forward(ctx, x_TD, weight_D, eps):
        y_TD, inverse_T = _normalise(x_TD, weight_D, eps)
        ctx.save_for_backward(x_TD, weight_D, inverse_T)
        return y_TD

    @staticmethod
    def backward(ctx, grad_TD):
        x_TD, weight_D, inverse_T = ctx.saved_tensors
        normal_TD, grad_TD = x_TD.float() * inverse_T, grad_TD.float()
        grad_x_TD = grad_weight_D = None
        if ctx.needs_input_grad[1]:
            products_TD = (grad_TD * normal_TD).flatten(0, -2)
            grad_weight_D = products_TD.sum(0).to(weight_D.dtype)
        if ctx.needs_input_grad[0]:
            grad_x_TD = norm_gradient(grad_TD * weight_D.float(), normal_TD, inverse_T)
            grad_x_TD = grad_x_TD.to(x_TD.dtype)
        return grad_x_TD, grad_weight_D, None


def norm_gradient(scaled_TD: Tensor, normal_TD: Tensor, inverse_T: Tensor) -> Tensor:
    """The gradient of the input, from that of the normalised rows (overwritten) and these."""
    along_T = (scaled_TD * normal_TD).mean(-1, keepdim=True)
    return scaled_TD.addcmul_(normal_TD, along_T, value=-1).mul_(inverse_T)


def _normalise(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide_TD = x_TD.float()
    inverse_T = (wide_TD.square().mean(-1, keepdim=True) + eps).rsqrt_()
    return (wide_TD * inverse_T).to(weight_D.dtype).mul_(weight_D), inverse_T
