"""Which experts every token in the cache passed through."""

import numpy as np
import torch
from torch import Tensor

from tandem.engine.torch.memory import expert_sizes
from tandem.models.shape import Shape


class ChosenExperts:
    """Experts by place in the cache, beside keys and values: who shares a block shares these."""

    def __init__(
        self, shape: Shape, num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        self._sizes, self._block_size, self._device = expert_sizes(shape), block_size, device
        self._of_block = torch.zeros(
            (num_blocks, block_size, *self._sizes), dtype=torch.int16, device=device
        )

    def room(self, num_tokens: int) -> Tensor:
        """A tensor that a forward pass can write the experts of its tokens to, `[T, L, k]`."""
        return torch.zeros((num_tokens, *self._sizes), dtype=torch.int16, device=self._device)

    def write(self, places_T: Tensor, experts_TLk: Tensor) -> None:
        """Keeps what the tokens at these places passed through."""
        self._of_block.flatten(0, 1).index_copy_(0, places_T, experts_TLk)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copies whole blocks."""
        self._of_block.index_copy_(0, target, self._of_block.index_select(0, source))

    def read(self, blocks: list[int], num_known: int, num_tokens: int) -> np.ndarray:
        """The experts `[T, L, k]` of a sequence in these blocks, -1 from `num_known` on.

        Waits for the device.
        """
        experts_TLk = np.full((num_tokens, *self._sizes), -1, np.int16)
        index = torch.tensor(blocks[: -(-num_known // self._block_size)], device=self._device)
        found = self._of_block.index_select(0, index.long()).flatten(0, 1)[:num_known]
        experts_TLk[:num_known] = found.cpu().numpy()
        return experts_TLk
