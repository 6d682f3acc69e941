"""Tensors that wait in host memory while nobody needs them on their device."""

import contextlib
import mmap
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from tandem.errors import ResourceError

ALIGNMENT = 512
"""Bytes that a tensor's place in the arena is a multiple of."""


class Sleeper:
    """Tensors that give their memory back and take it again, with what they held.

    Asleep they are empty where they were, and their bytes lie in one arena of host memory, pinned
    if the device is a GPU: made when they first fall asleep, and kept. They are the same objects
    before and after, at other addresses.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors of one device, each alone in its storage."""
        self._tensors = dict(tensors)
        self._device = next((t.device for t in self._tensors.values()), torch.device("cpu"))
        self._host: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._arrived: torch.cuda.Event | None = None  # of the copies of `wake`
        self.is_asleep = False

    @property
    def num_bytes(self) -> int:
        """What sleeping gives back."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def tensors(self) -> dict[str, Tensor]:
        """Each tensor by name, or its place in host memory: what is written there it will hold."""
        self.settle()
        return dict(self._host if self.is_asleep else self._tensors)

    @torch.no_grad()
    def sleep(self) -> None:
        """Copies everything to the host and empties the tensors; nothing if they are asleep.

        `torch.cuda.empty_cache` gives the memory back to the driver then.
        """
        if self.is_asleep:
            return
        self.settle()
        if not self._host:
            self._host = self._places()
        for name, tensor in self._tensors.items():
            self._host[name].copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        for tensor in self._tensors.values():
            tensor.untyped_storage().resize_(0)
        self.is_asleep = True

    @torch.no_grad()
    def wake(self) -> None:
        """Fills the tensors again; nothing if they are awake.

        On a GPU the copies go on beside other work, and `settle` waits for them.
        """
        if not self.is_asleep:
            return
        for tensor in self._tensors.values():
            tensor.untyped_storage().resize_(tensor.nbytes)
        self.is_asleep = False
        if self._device.type != "cuda":
            self._fill()
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        # the memory may be in use by what is queued
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._fill()
        self._arrived = self._stream.record_event()

    def settle(self) -> None:
        """Has what is queued from now on wait for the copies of `wake`."""
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived)
            self._arrived = None

    def _fill(self) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(self._host[name], non_blocking=True)

    def _places(self) -> dict[str, Tensor]:
        """Room for each tensor in a new arena."""
        starts, num_bytes = {}, 0
        for name, tensor in self._tensors.items():
            starts[name] = num_bytes
            num_bytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if not num_bytes:
            return {
                name: torch.empty_like(one, device="cpu") for name, one in self._tensors.items()
            }
        arena = host_memory(num_bytes)
        if self._device.type == "cuda":
            pin(arena)
            # what nobody reads any more must not stay pinned; at exit the driver sees to it
            weakref.finalize(self, unpin, arena).atexit = False
        return {
            name: arena[starts[name] : starts[name] + one.nbytes].view(one.dtype).view(one.shape)
            for name, one in self._tensors.items()
        }


def host_memory(num_bytes: int) -> Tensor:
    """Bytes on pages as large as the host has, which are pinned in a fraction of the time.

    Not torch's own pinned memory: that comes in powers of two.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # a process that forks would be given copies of pages that the device writes to
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):
        with contextlib.suppress(OSError, AttributeError):  # a kernel without it
            memory.madvise(getattr(mmap, advice))
    return torch.frombuffer(memory, dtype=torch.uint8)


def pin(arena: Tensor) -> None:
    """Makes copies from and to this memory run at the speed of the link, beside other work."""
    arena[:: mmap.PAGESIZE].zero_()  # taken by all threads: pinning would take page after page
    status = torch.cuda.cudart().cudaHostRegister(arena.data_ptr(), arena.nbytes, 0)
    if int(status):
        raise ResourceError(
            f"{arena.nbytes / 2**30:.1f} GiB of host memory for the optimizer's state could not be "
            f"pinned (CUDA error {int(status)}); set --no-offload-train, or raise the limit of "
            "locked memory (ulimit -l)"
        )


def unpin(arena: Tensor) -> None:
    """Takes `pin` back."""
    torch.cuda.cudart().cudaHostUnregister(arena.data_ptr())
