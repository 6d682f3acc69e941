"""Linear layers whose bits do not depend on how many rows share the call."""

import torch
from torch import Tensor
from torch.nn import functional

from tandem.kernels.device import has_triton, is_fused, is_hopper

FEW_ROWS = 32
"""Rows up to which our tiles read weights faster than cuBLAS does without split; measured on an
H200 by `benchmarks/kernel_products.py`."""

_LEAST_ROWS_CPU = 16
"""Measured with MKL on AVX-512: fp32 rows differ below 4 rows on one thread and below 12 on two,
and are equal from there to 512; bf16 rows (oneDNN) never differ."""


def linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x_TD @ weight_OD.T + bias_O`, as torch gives it.

    On Hopper, few bf16 rows that want no gradient are multiplied by a Triton kernel: the order of
    its sums is that of cuBLAS without split (`sum_products_in_one_order`), so are its bits.
    """
    if _are_few(x_TD, weight_OD, bias_O):
        from tandem.kernels.cuda import linear as fused

        return fused.few_rows_product(x_TD, weight_OD)
    return functional.linear(x_TD, weight_OD, bias_O)


def _are_few(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> bool:
    return (
        x_TD.is_cuda
        and x_TD.dtype == torch.bfloat16
        and x_TD.ndim == 2
        and 0 < len(x_TD) <= FEW_ROWS
        and bias_O is None
        and not (len(weight_OD) % 64 or x_TD.shape[1] % 128)
        and not (torch.is_grad_enabled() and (x_TD.requires_grad or weight_OD.requires_grad))
        and has_triton()
        and is_hopper(x_TD.device)
    )


def invariant_linear(
    x_TD: Tensor,
    weight_OD: Tensor,
    bias_O: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`x_TD @ weight_OD.T + bias_O` with the same bits for a row whatever rows come with it.

    For the deterministic mode: an engine that decodes few rows then agrees with a trainer that
    sees thousands. Any number of leading axes. On the CPU few rows are padded and nothing else
    costs; on CUDA the product is Triton's with one order of summation, the gradient cuBLAS's.
    `out_dtype` is that of `x_TD` unless given.
    """
    if is_fused(x_TD):
        from tandem.kernels.cuda import linear as fused

        return fused.invariant_linear(x_TD, weight_OD, bias_O, out_dtype or x_TD.dtype)
    rows_TD = x_TD.flatten(0, -2)
    missing = max(0, _LEAST_ROWS_CPU - len(rows_TD))
    if missing:
        rows_TD = functional.pad(rows_TD, (0, 0, 0, missing))
    y_TO = functional.linear(rows_TD, weight_OD, bias_O)
    y_TO = y_TO[: len(rows_TD) - missing].unflatten(0, x_TD.shape[:-1])
    return y_TO if out_dtype is None else y_TO.to(out_dtype)


def sum_products_in_one_order() -> None:
    """Makes CUDA's own products give a row the same bits whatever rows come with it.

    cuBLAS splits the inner axis of some products when they have few rows, and engine and trainer
    would then round differently. Without that a row's bits were the same for every number of rows
    tried on an H200, and times changed by 2 % or less. Nothing on a machine without CUDA.
    """
    if not torch.cuda.is_available():
        return
    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)
