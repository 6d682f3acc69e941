"""A matrix whose outputs are divided over tensor ranks, and what its input costs them."""

import torch
from torch import Tensor, nn

from tandem.kernels.linear import linear
from tandem.models.part import Part
from tandem.parallel.collectives import start_gather, start_scatter, start_sum
from tandem.parallel.mesh import Axis


def column_linear(layer: nn.Linear, y_TD: Tensor, part: Part) -> Tensor:
    """This rank's columns of the product, for all rows: `y_TD` has them, or this rank's share of
    them with sequence parallelism.

    Of gathered rows nothing is kept, and in the backward pass collectives go on beside products.
    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
    2022.
    """
    axis = part.mesh.tensor
    if axis.size == 1:
        return linear(y_TD, layer.weight, layer.bias)
    return _ColumnLinear.apply(y_TD, layer.weight, layer.bias, axis, part.splits_rows)


class _ColumnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_TD, weight_CD, bias_C, axis: Axis, is_split: bool):
        ctx.save_for_backward(y_TD, weight_CD)
        ctx.axis, ctx.is_split = axis, is_split
        rows_TD = start_gather(y_TD, axis).wait() if is_split else y_TD
        return linear(rows_TD, weight_CD, bias_C)

    @staticmethod
    def backward(ctx, grad_TC):
        y_TD, weight_CD = ctx.saved_tensors
        needs_y, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_y_TD = grad_weight_CD = None
        rows = start_gather(y_TD, ctx.axis) if ctx.is_split and needs_weight else None
        if needs_y:
            start = start_scatter if ctx.is_split else start_sum
            grad_y_TD = start(grad_TC @ weight_CD, ctx.axis)
        if needs_weight:
            rows_TD = y_TD if rows is None else rows.wait()
            grad_weight_CD = grad_TC.t() @ rows_TD
        grad_bias_C = grad_TC.sum(0) if needs_bias else None
        return (
            None if grad_y_TD is None else grad_y_TD.wait(),
            grad_weight_CD,
            grad_bias_C,
            None,
            None,
        )
