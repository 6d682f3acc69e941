"""Sums, gathers and slices over one axis of the mesh, with their gradients.

Every function takes its axis last, gives equal results on its ranks in every run, and is free when
the axis has size 1. All ranks of the axis call it, in the same order, with tensors of one size.

What comes back in the backward pass depends on what the ranks do with the result: where each goes
its own way (`copy_in`, `gather_rows`, `own_rows` of one stream) their gradients are parts of a sum;
where all compute the same (`sum_out`, `all_rows`) each holds the whole gradient already.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.parallel.mesh import Axis

# torch 2.13 warns at the old names, 2.11 has no others
gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""torch's own, `(output, input, group=, async_op=)`, for those who have a place for the result."""


def copy_in(x: Tensor, axis: Axis) -> Tensor:
    """`x` itself; its gradient is the sum of the ranks' gradients."""
    return x if axis.size == 1 else _CopyIn.apply(x, axis)


def sum_out(x: Tensor, axis: Axis) -> Tensor:
    """The sum of the ranks' `x`; its gradient goes back to each as it is."""
    return x if axis.size == 1 else _SumOut.apply(x, axis)


def gather_rows(x: Tensor, axis: Axis) -> Tensor:
    """The ranks' rows behind each other along dim 0; gradients of a row are summed at its owner."""
    return x if axis.size == 1 else _GatherRows.apply(x, axis)


def scatter_rows(x: Tensor, axis: Axis) -> Tensor:
    """This rank's rows (an equal share of dim 0) of the sum of the ranks' `x`; the gradient is
    that of all rows."""
    return x if axis.size == 1 else _ScatterRows.apply(x, axis)


def own_rows(x: Tensor, axis: Axis) -> Tensor:
    """This rank's rows (an equal share of dim 0) of an `x` that all hold; the gradient is that of
    all rows."""
    return x if axis.size == 1 else _OwnRows.apply(x, axis)


def all_rows(x: Tensor, axis: Axis) -> Tensor:
    """The ranks' rows behind each other along dim 0, for ranks that then compute the same: each
    takes its own rows of the gradient, which is not summed."""
    return x if axis.size == 1 else _AllRows.apply(x, axis)


def sum_(tensor: Tensor, axis: Axis) -> Tensor:
    """`tensor` itself, now the sum over the axis; no gradient."""
    return _reduced(tensor, axis, dist.ReduceOp.SUM)


def max_(tensor: Tensor, axis: Axis) -> Tensor:
    """`tensor` itself, now the greatest value over the axis; no gradient."""
    return _reduced(tensor, axis, dist.ReduceOp.MAX)


def broadcast_(tensor: Tensor, axis: Axis) -> Tensor:
    """`tensor` itself, now as the first rank has it; no gradient."""
    if axis.size > 1:
        dist.broadcast(tensor, src=axis.ranks[0], group=axis.group)
    return tensor


def gather(tensor: Tensor, axis: Axis) -> list[Tensor]:
    """Every rank's `tensor`, in the order of the axis; no gradient."""
    if axis.size == 1:
        return [tensor]
    tensor = tensor.detach().contiguous()
    found = [torch.empty_like(tensor) for _ in range(axis.size)]
    dist.all_gather(found, tensor, group=axis.group)
    return found


@dataclass(frozen=True, slots=True)
class Coming:
    """A tensor that a collective is making, beside whatever else the device does."""

    _tensor: Tensor
    _work: Any
    _input: Tensor  # read until it is done

    def wait(self) -> Tensor:
        """The tensor; what is launched from now on comes after the collective."""
        self._work.wait()
        return self._tensor


def start_gather(x: Tensor, axis: Axis) -> Coming:
    """The ranks' rows behind each other along dim 0; no gradient."""
    x = x.contiguous()
    whole = x.new_empty(axis.size * x.shape[0], *x.shape[1:])
    return Coming(whole, gather_into(whole, x, group=axis.group, async_op=True), x)


def start_scatter(x: Tensor, axis: Axis) -> Coming:
    """This rank's rows (an equal share of dim 0) of the sum of the ranks' `x`; no gradient."""
    x = x.contiguous()
    own = x.new_empty(_share(x, axis), *x.shape[1:])
    return Coming(own, scatter_into(own, x, group=axis.group, async_op=True), x)


def start_sum(x: Tensor, axis: Axis) -> Coming:
    """The sum of the ranks' `x`, which is written over; no gradient."""
    return Coming(x, dist.all_reduce(x, group=axis.group, async_op=True), x)


class _CopyIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return sum_(_copy(grad), ctx.axis), None


class _SumOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        return sum_(_copy(x), axis)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return _gathered(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return _scattered(grad, ctx.axis), None


class _ScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return _scattered(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return _gathered(grad, ctx.axis), None


class _OwnRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return _own(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return _gathered(grad, ctx.axis), None


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return _gathered(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return _own(grad, ctx.axis), None


def _reduced(tensor: Tensor, axis: Axis, op) -> Tensor:
    if axis.size > 1:
        dist.all_reduce(tensor, op=op, group=axis.group)
    return tensor


def _copy(x: Tensor) -> Tensor:
    """A tensor of our own to reduce into: autograd may hold this one elsewhere too."""
    return x.clone(memory_format=torch.contiguous_format)


def _gathered(x: Tensor, axis: Axis) -> Tensor:
    return start_gather(x, axis).wait()


def _scattered(x: Tensor, axis: Axis) -> Tensor:
    return start_scatter(x, axis).wait()


def _own(x: Tensor, axis: Axis) -> Tensor:
    share = _share(x, axis)
    return _copy(x[axis.rank * share : (axis.rank + 1) * share])


def _share(x: Tensor, axis: Axis) -> int:
    assert x.shape[0] % axis.size == 0, f"{x.shape[0]} rows cannot be shared by {axis.size} ranks"
    return x.shape[0] // axis.size
