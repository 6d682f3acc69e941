"""Parts of tensors that many processes write together and read again in other parts.

PyTorch's distributed checkpoint stores boxes of a tensor, each at its offset. Here a process says
itself where its boxes lie, so any division over any axes can be saved, and read by any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """A box of a larger tensor: entry 0 of every dim of `tensor` is entry `starts[dim]` of it."""

    tensor: Tensor
    global_shape: tuple[int, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        ends = [start + size for start, size in zip(self.starts, self.tensor.shape, strict=True)]
        fits = all(end <= size for end, size in zip(ends, self.global_shape, strict=True))
        assert fits, f"a box that ends at {ends} is not in a tensor of {self.global_shape}"

    @property
    def is_empty(self) -> bool:
        return self.tensor.numel() == 0

    def fill(self, whole: Tensor) -> None:
        """Takes its box of the whole tensor, cast to its own dtype."""
        for dim, (start, size) in enumerate(zip(self.starts, self.tensor.shape, strict=True)):
            whole = whole.narrow(dim, start, size)
        self.tensor.copy_(whole)


Pieces = Mapping[str, Tensor | Piece]
"""Tensors by name; a plain one is whole, and the same on every process that names it."""


def as_pieces(tensors: Pieces) -> dict[str, Piece]:
    """Every tensor as a piece; one that wants gradients is reached through its data."""
    found = {}
    for name, given in tensors.items():
        if isinstance(given, Piece):
            found[name] = given
        else:
            whole = given.detach()
            found[name] = Piece(
                tensor=whole, global_shape=tuple(whole.shape), starts=(0,) * whole.dim()
            )
    return found
