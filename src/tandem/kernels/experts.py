"""The matrix products of a mixture of experts, and the way of its tokens there and back.

M rows are the k choices of T tokens, sorted by expert. Nothing here waits for the device, but for
the plain products (a CPU, or a dtype that the grouped product does not take).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tandem.kernels.device import is_fused
from tandem.kernels.linear import invariant_linear


@dataclass(frozen=True, slots=True)
class Sorting:
    """Where the choices of tokens lie once they are sorted by expert, equal ones by token."""

    order_M: Tensor  # int64, the place of each row among the flat choices [T * k]
    rows_Tk: Tensor  # int64, the row of each choice
    ends_E: Tensor  # int32, where the rows of each expert end


def sort_by_expert(experts_Tk: Tensor, num_experts: int) -> Sorting:
    """The order in which the rows of each expert lie together."""
    flat_M = experts_Tk.flatten()
    sorted_M, order_M = flat_M.sort(stable=True)
    rows_M = torch.empty_like(order_M)
    rows_M[order_M] = torch.arange(len(flat_M), device=flat_M.device)
    every_E = torch.arange(num_experts, device=flat_M.device, dtype=flat_M.dtype)
    ends_E = torch.searchsorted(sorted_M, every_E, right=True, out_int32=True)
    return Sorting(order_M, rows_M.view_as(experts_Tk), ends_E)


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """`x_TD @ weight_ED.T` in fp32, the same bits for a token whatever tokens come with it."""
    if is_fused(x_TD):  # products of bf16 are exact in the fp32 that sums them
        return invariant_linear(x_TD, weight_ED, out_dtype=torch.float32)
    return invariant_linear(x_TD.float(), weight_ED.float())


def dispatch(x_TD: Tensor, sorting: Sorting) -> Tensor:
    """The rows `[M, D]` that the experts take: each token once for every expert it chose."""
    return _Dispatch.apply(x_TD, sorting)


def combine(rows_MD: Tensor, weights_Tk: Tensor, sorting: Sorting) -> Tensor:
    """What a token's experts made of it, weighed and summed in the order of its choices.

    `[T, D]` in the dtype of the rows, summed in fp32; `weights_Tk` is fp32.
    """
    return _Combine.apply(rows_MD, weights_Tk, sorting)


def permute(rows_MD: Tensor, order_M: Tensor) -> Tensor:
    """`rows_MD[order_M]` for an order that has every row once; its gradient needs no atomics."""
    return _Permute.apply(rows_MD, order_M)


def grouped_linear(rows_MD: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    """`[M, O]`: the rows up to `ends_E[e]`, from `ends_E[e - 1]` on, times `weight_EOD[e].T`.

    On CUDA in bf16 torch's grouped product; else one product an expert, with the same bits for a
    row whatever rows come with it.
    """
    return _GroupedLinear.apply(rows_MD, weight_EOD, ends_E)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, sorting):
        ctx.sorting = sorting
        return x_TD.index_select(0, sorting.order_M // sorting.rows_Tk.shape[1])

    @staticmethod
    def backward(ctx, grad_MD):
        return _summed(grad_MD, None, ctx.sorting), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_MD, weights_Tk, sorting):
        ctx.save_for_backward(rows_MD, weights_Tk)
        ctx.sorting = sorting
        return _summed(rows_MD, weights_Tk, sorting)

    @staticmethod
    def backward(ctx, grad_TD):
        rows_MD, weights_Tk = ctx.saved_tensors
        return *_spread(grad_TD.contiguous(), rows_MD, weights_Tk, ctx.sorting), None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_MD, order_M):
        ctx.save_for_backward(order_M)
        return rows_MD.index_select(0, order_M)

    @staticmethod
    def backward(ctx, grad_MD):
        (order_M,) = ctx.saved_tensors
        return torch.empty_like(grad_MD).index_copy_(0, order_M, grad_MD), None


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_MD, weight_EOD, ends_E):
        ctx.save_for_backward(rows_MD, weight_EOD, ends_E)
        return _product(rows_MD, weight_EOD, ends_E)

    @staticmethod
    def backward(ctx, grad_MO):
        rows_MD, weight_EOD, ends_E = ctx.saved_tensors
        grad_MO = grad_MO.contiguous()
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = _product(grad_MO, weight_EOD.transpose(1, 2), ends_E)
        if ctx.needs_input_grad[1]:
            grad_weight = _outer(grad_MO, rows_MD, ends_E)
        return grad_rows, grad_weight, None


def _is_grouped(rows: Tensor, others: int) -> bool:
    """Whether torch's grouped product takes these rows, and as wide ones on the other side."""
    is_aligned = rows.shape[1] % _ALIGNED == 0 and others % _ALIGNED == 0
    return rows.is_cuda and rows.dtype == torch.bfloat16 and is_aligned


def _product(rows_MD: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    if not len(rows_MD):
        return rows_MD.new_empty(0, weight_EOD.shape[1])
    if _is_grouped(rows_MD, weight_EOD.shape[1]):
        return functional.grouped_mm(rows_MD, weight_EOD.transpose(1, 2), offs=ends_E)
    out_MO = rows_MD.new_empty(len(rows_MD), weight_EOD.shape[1])
    for expert, start, end in _runs(ends_E):
        out_MO[start:end] = invariant_linear(rows_MD[start:end], weight_EOD[expert])
    return out_MO


def _outer(grad_MO: Tensor, rows_MD: Tensor, ends_E: Tensor) -> Tensor:
    """The gradient of the weights `[E, O, D]`; an expert without rows gets 0."""
    sizes = (len(ends_E), grad_MO.shape[1], rows_MD.shape[1])
    if not len(rows_MD):
        return rows_MD.new_zeros(sizes)
    if _is_grouped(rows_MD, grad_MO.shape[1]):
        return functional.grouped_mm(grad_MO.t(), rows_MD, offs=ends_E)
    out_EOD = rows_MD.new_zeros(sizes)
    for expert, start, end in _runs(ends_E):
        torch.mm(grad_MO[start:end].t(), rows_MD[start:end], out=out_EOD[expert])
    return out_EOD


def _runs(ends_E: Tensor) -> list[tuple[int, int, int]]:
    """(expert, first row, last row + 1) of every expert that has rows."""
    ends = ends_E.tolist()
    runs = zip(range(len(ends)), [0, *ends], ends, strict=False)
    return [run for run in runs if run[1] < run[2]]


def _summed(rows_MD: Tensor, weights_Tk: Tensor | None, sorting: Sorting) -> Tensor:
    """The rows of each token, weighed if there are weights, summed choice by choice in fp32."""
    if is_fused(rows_MD):
        from tandem.kernels.cuda import experts as fused

        return fused.summed(rows_MD, weights_Tk, sorting.rows_Tk)
    total_TD = rows_MD.new_zeros(
        len(sorting.rows_Tk), rows_MD.shape[1], dtype=torch.promote_types(rows_MD.dtype, _LEAST)
    )
    for choice, rows_T in enumerate(sorting.rows_Tk.unbind(1)):
        part_TD = rows_MD.index_select(0, rows_T).to(total_TD.dtype)
        total_TD += part_TD if weights_Tk is None else part_TD * weights_Tk[:, choice, None]
    return total_TD.to(rows_MD.dtype)


def _spread(
    grad_TD: Tensor, rows_MD: Tensor, weights_Tk: Tensor, sorting: Sorting
) -> tuple[Tensor, Tensor]:
    """The gradients of rows and weights."""
    if is_fused(rows_MD):
        from tandem.kernels.cuda import experts as fused

        return fused.spread(grad_TD, rows_MD, weights_Tk, sorting.rows_Tk)
    grad_rows, grad_weights = torch.empty_like(rows_MD), torch.empty_like(weights_Tk)
    wide_TD = grad_TD.to(torch.promote_types(grad_TD.dtype, _LEAST))
    for choice, rows_T in enumerate(sorting.rows_Tk.unbind(1)):
        part_TD = rows_MD.index_select(0, rows_T).to(wide_TD.dtype)
        grad_weights[:, choice] = (wide_TD * part_TD).sum(-1)
        weighed_TD = wide_TD * weights_Tk[:, choice, None]
        grad_rows.index_copy_(0, rows_T, weighed_TD.to(grad_rows.dtype))
    return grad_rows, grad_weights


_ALIGNED = 8
"""Numbers of bf16 in 16 bytes, of which rows must be a multiple."""

_LEAST = torch.float32
"""Sums over choices are made in this at least (a test may come with float64)."""
