"""A linear layer whose bits do not depend on how many rows share the call."""

import torch
from torch import Tensor

from tandem.kernels.device import is_fused

_LEAST_ROWS_CPU = 16
"""Measured with MKL on AVX-512: fp32 rows differ below 4 rows on one thread and below 12 on two,
and are equal from there to 512; bf16 rows (oneDNN) never differ."""


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
        rows_TD = torch.nn.functional.pad(rows_TD, (0, 0, 0, missing))
    y_TO = torch.nn.functional.linear(rows_TD, weight_OD, bias_O)
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
