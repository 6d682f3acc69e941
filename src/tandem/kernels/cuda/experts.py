"""Sums of the rows of a token's experts in Triton, and what goes back to them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


def summed(rows_MD: Tensor, weights_Tk: Tensor | None, rows_Tk: Tensor) -> Tensor:
    """`[T, D]`: the rows of each token, weighed if there are weights, summed in fp32 in order."""
    rows_MD = rows_MD.contiguous()
    (num_tokens, choices), width = rows_Tk.shape, rows_MD.shape[1]
    total_TD = rows_MD.new_empty(num_tokens, width)
    if total_TD.numel():
        weights = None if weights_Tk is None else weights_Tk.contiguous()
        _summed[(num_tokens, triton.cdiv(width, _BLOCK))](
            rows_MD, weights, rows_Tk, total_TD, width,
            CHOICES=choices, IS_WEIGHED=weights is not None, BLOCK=_BLOCK, num_warps=2,
        )  # fmt: skip
    return total_TD


def spread(
    grad_TD: Tensor, rows_MD: Tensor, weights_Tk: Tensor, rows_Tk: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the rows and of their weights, of the weighed sum of `summed`."""
    rows_MD = rows_MD.contiguous()
    (num_tokens, choices), width = rows_Tk.shape, rows_MD.shape[1]
    grad_rows = torch.empty_like(rows_MD)
    grad_weights = torch.empty_like(weights_Tk, memory_format=torch.contiguous_format)
    if grad_TD.numel():
        _spread[(num_tokens,)](
            grad_TD, rows_MD, weights_Tk.contiguous(), rows_Tk, grad_rows, grad_weights, width,
            CHOICES=choices, BLOCK=triton.next_power_of_2(width), num_warps=8,
        )  # fmt: skip
    return grad_rows, grad_weights


@triton.jit
def _summed(
    rows_ptr, weights_ptr, places_ptr, total_ptr, width,
    CHOICES: tl.constexpr, IS_WEIGHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in tl.static_range(CHOICES):
        row = tl.load(places_ptr + token * CHOICES + choice)
        part = tl.load(rows_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
        if IS_WEIGHED:
            part *= tl.load(weights_ptr + token * CHOICES + choice)
        total += part
    tl.store(total_ptr + token * width + column, total.to(total_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _spread(
    grad_ptr, rows_ptr, weights_ptr, places_ptr, grad_rows_ptr, grad_weights_ptr, width,
    CHOICES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    grad = tl.load(grad_ptr + token * width + column, mask=inside, other=0.0).to(tl.float32)
    for choice in tl.static_range(CHOICES):
        place = token * CHOICES + choice
        at = tl.load(places_ptr + place) * width + column
        part = tl.load(rows_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_weights_ptr + place, tl.sum(grad * part, axis=0))
        weighed = grad * tl.load(weights_ptr + place)
        tl.store(grad_rows_ptr + at, weighed.to(grad_rows_ptr.dtype.element_ty), mask=inside)
