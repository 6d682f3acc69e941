"""Named tensors in buckets of bounded size, and how a server takes one by handle."""

import base64
import io
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions

Named = Sequence[tuple[str, Tensor]]
_DEVICE_ARGUMENT = 6  # of torch's rebuild_cuda_tensor


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Tensors of one dtype, one after the other, as bytes."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    flat: Tensor  # uint8

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def buckets(named: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[Bucket]:
    """All tensors in order, at most `limit` bytes together; a larger one goes alone."""
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named:
        more = tensor.numel() * tensor.element_size()
        if held and (size + more > limit or tensor.dtype != held[0][1].dtype):
            yield flattened(held)
            held, size = [], 0
        held.append((name, tensor.detach()))
        size += more
    if held:
        yield flattened(held)


def flattened(named: Named) -> Bucket:
    """The tensors copied behind each other. A fresh buffer each time: the receiver may still be
    reading the last one."""
    flat = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in named])
    return Bucket(
        names=tuple(name for name, _ in named),
        shapes=tuple(tensor.shape for _, tensor in named),
        dtype=named[0][1].dtype,
        flat=flat,
    )


def handle_of(bucket: Bucket) -> str:
    """The bucket as servers take it: a CUDA tensor as an IPC handle, a CPU tensor by value.

    Every receiver wants a handle of its own. Devices go by their UUID, since a server may count
    them differently.
    """
    metadata, start = [], 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        length = shape.numel() * bucket.dtype.itemsize
        metadata.append(
            SimpleNamespace(
                name=name,
                shape=shape,
                dtype=bucket.dtype,
                start_idx=start,
                end_idx=start + length,
                numel=length,
            )
        )
        start += length
    written = io.BytesIO()
    _Pickler(written, protocol=5).dump({"flattened_tensor": bucket.flat, "metadata": metadata})
    return base64.b64encode(written.getvalue()).decode()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor) or not obj.is_cuda:
            return NotImplemented
        rebuild, arguments = reductions.reduce_tensor(obj)
        changed = list(arguments)
        device = changed[_DEVICE_ARGUMENT]
        changed[_DEVICE_ARGUMENT] = str(torch.cuda.get_device_properties(device).uuid)
        return rebuild, tuple(changed)
