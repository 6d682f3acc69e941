"""How a server takes a bucket by handle."""

import base64
import io
import pickle
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions

from tandem.carriers.buckets import Bucket

_DEVICE_ARGUMENT = 6  # of torch's rebuild_cuda_tensor


def handle_of(bucket: Bucket) -> str:
    """The bucket as servers take it: a CUDA tensor as an IPC handle, a CPU tensor by value.

    Every receiver wants a handle of its own. Devices go by their UUID, since a server may count
    them differently.
    """
    form, metadata, start = bucket.form, [], 0
    for name, shape, length in zip(form.names, form.shapes, form.lengths, strict=True):
        metadata.append(
            SimpleNamespace(
                name=name,
                shape=torch.Size(shape),
                dtype=form.dtype,
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
