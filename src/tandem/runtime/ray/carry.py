"""Weights as buckets of bytes, for Ray's object store."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """Some named tensors, one behind the other."""

    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    flat: np.ndarray  # uint8


def buckets(named: Iterable[tuple[str, Tensor]], most_bytes: int) -> Iterator[Packet]:
    """The tensors in their order, as many a packet as fit in `most_bytes`; one at least."""
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named:
        if held and size + tensor.nbytes > most_bytes:
            yield _packet(held)
            held, size = [], 0
        held.append((name, tensor))
        size += tensor.nbytes
    if held:
        yield _packet(held)


def from_buckets(packets: Iterable[Packet]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in their order; each is good until the next is asked for."""
    for packet in packets:
        flat = torch.frombuffer(bytearray(packet.flat), dtype=torch.uint8)
        start = 0
        for name, dtype, shape in zip(packet.names, packet.dtypes, packet.shapes, strict=True):
            end = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            # a copy: where it starts need not suit its dtype
            yield name, flat[start:end].clone().view(dtype).view(shape)
            start = end


def _packet(held: list[tuple[str, Tensor]]) -> Packet:
    parts = [tensor.detach().contiguous().cpu().view(-1).view(torch.uint8) for _, tensor in held]
    return Packet(
        names=tuple(name for name, _ in held),
        dtypes=tuple(tensor.dtype for _, tensor in held),
        shapes=tuple(tuple(tensor.shape) for _, tensor in held),
        flat=torch.cat(parts).numpy(),
    )
