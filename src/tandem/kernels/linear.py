"""A linear layer whose bits do not depend on how many rows share the call."""

import torch
from torch import Tensor

_LEAST_ROWS_CPU = 16
"""Measured with MKL on AVX-512: fp32 rows differ below 4 rows on one thread and below 12 on two,
and are equal from there to 512; bf16 rows (oneDNN) never differ."""


def invariant_linear(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x_TD @ weight_OD.T + bias_O` with the same bits for a row whatever rows come with it.

    For the deterministic mode: an engine that decodes few rows then agrees with a trainer that
    sees thousands. Costs nothing but for few rows, which are padded.
    """
    num_rows = x_TD.shape[0]
    if num_rows >= _LEAST_ROWS_CPU:
        return torch.nn.functional.linear(x_TD, weight_OD, bias_O)
    padded = torch.nn.functional.pad(x_TD, (0, 0, 0, _LEAST_ROWS_CPU - num_rows))
    return torch.nn.functional.linear(padded, weight_OD, bias_O)[:num_rows]
