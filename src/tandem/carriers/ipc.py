"""Buckets handed from process to process on one device, without a copy between.

On a GPU the receiver reads the sender's own buffer by CUDA IPC; on the CPU it is given by value.
"""

import io
import pickle
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing import reductions

from tandem.carriers.buckets import Bucket, Named, buckets, tensors_of
from tandem.errors import SyncError

LENT = 2
"""Buckets that are packed and not yet read, at most."""
_DEVICE_ARGUMENT = 6  # of torch's rebuild_cuda_tensor


class Wire(Protocol):
    """What two processes talk over; `multiprocessing.Pipe` gives such."""

    def send_bytes(self, data: bytes, /) -> None: ...

    def recv_bytes(self) -> bytes: ...


def send(wire: Wire, named: Named, limit: int) -> int:
    """Hands over the tensors in buckets of at most `limit` bytes; how many bytes they had.

    Raises SyncError if the receiver is gone.
    """
    lent: list[Bucket] = []
    num_bytes = 0
    try:
        for bucket in buckets(named, limit):
            if len(lent) == LENT:
                wire.recv_bytes()
                lent.pop(0)
            if bucket.flat.is_cuda:  # the handle says nothing of streams
                torch.cuda.current_stream(bucket.flat.device).synchronize()
            wire.send_bytes(dumps(bucket))
            lent.append(bucket)
            num_bytes += bucket.flat.nbytes
        wire.send_bytes(dumps(None))
        for _ in lent:
            wire.recv_bytes()
    except (EOFError, OSError) as error:
        raise SyncError(f"weights could not be handed over: {error or 'it has ended'}") from error
    if any(bucket.flat.is_cuda for bucket in lent):
        torch.cuda.ipc_collect()  # buffers that the receiver has let go of
    return num_bytes


def receive(wire: Wire) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they come; SyncError if the sender is gone.

    A buffer goes back to the sender when nobody here holds a tensor of it; torch counts, and waits
    for what this device still reads.
    """
    try:
        while (bucket := pickle.loads(wire.recv_bytes())) is not None:
            yield from tensors_of(bucket)
            wire.send_bytes(b"read")
    except (EOFError, OSError) as error:
        raise SyncError(f"weights did not come: {error or 'the sender has ended'}") from error


def dumps(value: Any) -> bytes:
    """The value pickled, with CUDA tensors as IPC handles and CPU tensors by value.

    Every receiver wants a handle of its own. Devices go by their UUID, since another process may
    count them differently.
    """
    written = io.BytesIO()
    _Pickler(written, protocol=5).dump(value)
    return written.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor) or not obj.is_cuda:
            return NotImplemented
        rebuild, arguments = reductions.reduce_tensor(obj)
        changed = list(arguments)
        device = changed[_DEVICE_ARGUMENT]
        changed[_DEVICE_ARGUMENT] = str(torch.cuda.get_device_properties(device).uuid)
        return _rebuild, (rebuild, tuple(changed))


def _rebuild(rebuild: Any, arguments: tuple[Any, ...]) -> Tensor:
    """The tensor of a handle, on this process's number of the device with that UUID."""
    changed = list(arguments)
    for number in range(torch.cuda.device_count()):
        if str(torch.cuda.get_device_properties(number).uuid) == changed[_DEVICE_ARGUMENT]:
            changed[_DEVICE_ARGUMENT] = number
            return rebuild(*changed)
    raise SyncError(f"this process does not see GPU {changed[_DEVICE_ARGUMENT]}")
