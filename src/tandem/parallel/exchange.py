"""Rows that go from every rank of an axis to every other, as many as each pair needs."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.parallel.mesh import Axis


def exchange(rows: Tensor, sent: Sequence[int], received: Sequence[int], axis: Axis) -> Tensor:
    """The rows that the ranks sent here, those of rank 0 first; gradients go back the way.

    The first `sent[0]` rows go to rank 0 of the axis, the next `sent[1]` to rank 1; `received[r]`
    rows come from rank r. All ranks of the axis call it; on an axis of size 1 it is free.
    """
    return rows if axis.size == 1 else _Exchange.apply(rows, list(sent), list(received), axis)


def exchange_counts(counts: Tensor, axis: Axis) -> Tensor:
    """`[P, ...]` of what each of the P ranks says to this one, of what this one says to each."""
    if axis.size == 1:
        return counts
    counts = counts.contiguous()
    found = torch.empty_like(counts)
    dist.all_to_all_single(found, counts, group=axis.group)
    return found


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, sent, received, axis):
        ctx.sent, ctx.received, ctx.axis = sent, received, axis
        return _exchanged(rows, sent, received, axis)

    @staticmethod
    def backward(ctx, grad):
        return _exchanged(grad, ctx.received, ctx.sent, ctx.axis), None, None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent, group=axis.group)
    return found
