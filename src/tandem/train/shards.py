"""Rows of parameters shared out over the processes that hold the same weights.

Each process owns the optimizer's state of an equal share of every parameter's rows (dim 0): the
ceiling of rows / processes, the last ones less or none, as `torch.chunk` and FSDP2's `Shard(0)`
divide. A large parameter whose rows divide evenly lies in memory as the collectives want it, and is
its own buffer; others travel in buffers in which the shares of one process stand together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tandem.parallel import ALONE, Axis
from tandem.parallel.collectives import gather_into, scatter_into, sum_

ALONE_FROM = 1 << 20
"""Numbers from which on a parameter is its own buffer."""
BUFFER = 1 << 25
"""Numbers that a buffer of several parameters may hold: 128 MB in fp32."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Which processes hold a parameter, and what its gradient on one of them lacks."""

    over: Axis = ALONE  # they hold the same rows, and share out the optimizer's state of them
    partial: tuple[Axis, ...] = ()  # further axes that the gradient is summed over
    is_counted: bool = True  # in the norm of the gradient: one of those that hold the same


ONE_PROCESS = Spread()


class Rows(NamedTuple):
    """The share of a parameter's rows that this process owns."""

    start: int
    stop: int
    most: int  # of any process: what a share is padded to on its way


def rows_of(size: int, axis: Axis) -> Rows:
    """This process's share of `size` rows."""
    most = -(-size // axis.size)
    start = min(axis.rank * most, size)
    return Rows(start, min(start + most, size), most)


class Bucket:
    """Parameters whose gradients and new weights travel together."""

    def __init__(self, spread: Spread, shapes: Mapping[str, torch.Size]) -> None:
        self.spread = spread
        self._shapes = dict(shapes)
        self._rows = {name: rows_of(shape[0], spread.over) for name, shape in shapes.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def reduce(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's rows of the summed fp32 gradients, taken out of `gradients`."""
        over = self.spread.over
        if over.size == 1:
            own = {name: gradients.pop(name) for name in self.names}
            for axis in self.spread.partial:
                for gradient in own.values():
                    sum_(gradient, axis)
            return own
        packed = self._packed(gradients)
        share = packed.new_empty(len(packed) // over.size)
        scatter_into(share, packed, group=over.group)
        for axis in self.spread.partial:
            sum_(share, axis)
        return {name: flat.view(size) for name, flat, size in self._own_parts(share)}

    def gather(self, own: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Writes all rows of the parameters, of which each process has its own in `own`."""
        over, first = self.spread.over, parameters[self.names[0]]
        if over.size == 1:
            return
        share = first.new_zeros(self._share_size())
        for name, flat, size in self._own_parts(share):
            flat.view(size).copy_(own[name])
        if self._is_direct():
            gather_into(first.view(-1), share, group=over.group)
            return
        whole = first.new_empty(over.size * len(share))
        gather_into(whole, share, group=over.group)
        for name, part in self._everywhere(whole):
            parameters[name].copy_(part.reshape(-1, *self._shapes[name][1:])[: self._size(name)])

    def _packed(self, gradients: dict[str, Tensor]) -> Tensor:
        """The gradients, flat, the share of the first process first."""
        if self._is_direct():
            return gradients.pop(self.names[0]).contiguous().view(-1)
        first = gradients[self.names[0]]
        packed = first.new_zeros(self.spread.over.size * self._share_size())
        for name, part in self._everywhere(packed):
            gradient = gradients.pop(name)
            padded = gradient.new_zeros(part.shape[0] * self._rows[name].most, *gradient.shape[1:])
            padded[: len(gradient)] = gradient
            part.copy_(padded.view(part.shape))
        return packed

    def _everywhere(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, all processes' rows of it as a view `[processes, numbers]`)."""
        shares, at = flat.view(self.spread.over.size, -1), 0
        for name in self.names:
            size = self._rows[name].most * self._row_size(name)
            yield name, shares[:, at : at + size]
            at += size

    def _own_parts(self, share: Tensor) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
        """(name, this process's rows of it in its share, flat, their shape)."""
        at = 0
        for name, (start, stop, most) in self._rows.items():
            size = self._row_size(name)
            yield name, share[at : at + (stop - start) * size], (stop - start, *self._tail(name))
            at += most * size

    def _share_size(self) -> int:
        return sum(rows.most * self._row_size(name) for name, rows in self._rows.items())

    def _is_direct(self) -> bool:
        (name, *more) = self.names
        return not more and self._size(name) % self.spread.over.size == 0

    def _size(self, name: str) -> int:
        return self._shapes[name][0]

    def _tail(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes[name][1:])

    def _row_size(self, name: str) -> int:
        return self._shapes[name][1:].numel()


def buckets_of(parameters: Mapping[str, Tensor], spreads: Mapping[str, Spread]) -> list[Bucket]:
    """All parameters in buckets, each of one spread and one dtype, in their order."""
    filled: dict[tuple[Spread, torch.dtype], dict[str, torch.Size]] = {}
    buckets = []
    for name, parameter in parameters.items():
        spread = spreads.get(name, ONE_PROCESS)
        if parameter.numel() >= ALONE_FROM:
            buckets.append(Bucket(spread, {name: parameter.shape}))
            continue
        key = (spread, parameter.dtype)
        shapes = filled.setdefault(key, {})
        shapes[name] = parameter.shape
        if sum(shape.numel() for shape in shapes.values()) >= BUFFER:
            buckets.append(Bucket(spread, filled.pop(key)))
    buckets += [Bucket(spread, shapes) for (spread, _), shapes in filled.items()]
    return buckets
