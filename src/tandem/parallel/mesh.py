"""Where a training process stands among all of them."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """This process's place on the mesh's axes, and what packing must know of its device."""

    data_rank: int = 0
    data_size: int = 1
    context_size: int = 1
    row_multiple: int = 1  # tokens that a packed row is padded to a multiple of
    sequence_cost: Callable[[int], float] = float  # work of a sequence of that many tokens

    def __post_init__(self) -> None:
        assert 0 <= self.data_rank < self.data_size, f"no data rank {self.data_rank}"
        assert self.row_multiple >= 1, f"rows cannot be a multiple of {self.row_multiple}"
