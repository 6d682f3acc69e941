"""Sums over each sequence of a packed row."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sequence_sums(x_T: "torch.Tensor", bounds_S: "torch.Tensor") -> "torch.Tensor":
    """The sum of each sequence, float64 `[S]`: in its own order, so packing changes no bit."""
    import torch

    return torch.segment_reduce(x_T.double(), "sum", offsets=bounds_S.long())


def masked_means(
    x_T: "torch.Tensor", mask_T: "torch.Tensor", bounds_S: "torch.Tensor"
) -> "torch.Tensor":
    """The mean over each sequence's masked-in tokens, float64 `[S]`; 0 where there are none."""
    # where, not a product: what is masked out may be infinite
    kept_T = x_T.where(mask_T > 0, 0.0)
    counts_S = sequence_sums(mask_T, bounds_S).clamp(min=1)
    return sequence_sums(kept_T, bounds_S) / counts_S


def to_tokens(x_S: "torch.Tensor", bounds_S: "torch.Tensor", num_tokens: int) -> "torch.Tensor":
    """Each sequence's value at all of its tokens, `[T]`."""
    return x_S.repeat_interleave(bounds_S.long().diff(), output_size=num_tokens)
