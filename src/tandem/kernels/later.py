"""Results on their way from the device to the host."""

import numpy as np
import torch
from torch import Tensor


class Later:
    """Tensors that the host reads when it needs them.

    On CUDA they are copied behind what is queued now, so whoever computed them may go on. All lie
    on one device.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            self._tensors = tuple(map(_to_host, tensors))
            self._done = torch.cuda.Event()
            self._done.record()

    def read(self) -> tuple[np.ndarray, ...]:
        """The tensors as arrays, waiting for the device if it must."""
        if self._done is not None:
            self._done.synchronize()
        return tuple(tensor.numpy() for tensor in self._tensors)


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
