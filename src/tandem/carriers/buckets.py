"""Named tensors in buckets of bounded size: what every carrier moves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What is in a bucket: tensors of one dtype, one after the other."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def lengths(self) -> list[int]:
        """Bytes of each tensor."""
        return [prod(shape) * self.dtype.itemsize for shape in self.shapes]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def record(self) -> dict[str, Any]:
        """What JSON can hold of it; `form_of` reads it."""
        return {"names": self.names, "shapes": self.shapes, "dtype": self.dtype_name}


def form_of(record: Mapping[str, Any]) -> Form:
    """The form that was written so."""
    return Form(
        names=tuple(record["names"]),
        shapes=tuple(map(tuple, record["shapes"])),
        dtype=getattr(torch, record["dtype"]),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bucket:
    """Some tensors as bytes."""

    form: Form
    flat: Tensor  # uint8


def buckets(named: Named, limit: int) -> Iterator[Bucket]:
    """All tensors in order, at most `limit` bytes together; a larger one goes alone.

    Each in a fresh buffer: a receiver may still be reading the one before.
    """
    return map(packed, grouped(named, limit))


def grouped(named: Named, limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    """The tensors in order, at most `limit` bytes and one dtype together, none of them copied."""
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named:
        if held and (size + tensor.nbytes > limit or tensor.dtype != held[0][1].dtype):
            yield held
            held, size = [], 0
        held.append((name, tensor.detach()))
        size += tensor.nbytes
    if held:
        yield held


def packed(named: Sequence[tuple[str, Tensor]]) -> Bucket:
    """The tensors, of one dtype, copied behind each other."""
    form = Form(
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(tensor.shape) for _, tensor in named),
        dtype=named[0][1].dtype,
    )
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in named]
    return Bucket(form=form, flat=torch.cat(parts))


def tensors_of(bucket: Bucket) -> Iterator[tuple[str, Tensor]]:
    """The tensors in their order, views of the bucket."""
    form = bucket.form
    pieces = bucket.flat.split(form.lengths)
    for name, piece, shape in zip(form.names, pieces, form.shapes, strict=True):
        yield name, piece.view(form.dtype).view(shape)
