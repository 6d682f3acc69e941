"""Parts of tensors that many processes write together and read again in other parts.

PyTorch's distributed checkpoint stores boxes of a tensor, each at its offset. Here a process says
itself where its boxes lie, so any division over any axes can be saved, and read by any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """A box of a larger tensor: entry 0 of every dim of `tensor` is entry `starts[dim]` of it."""

    tensor: Tensor
    global_shape: tuple[int, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        ends = [start + size for start, size in zip(self.starts, self.tensor.shape, strict=True)]
        fits = all(end <= size for end, size in zip(ends, self.global_shape, strict=True))
        assert fits, f"a box that ends at {ends} is not in a tensor of {self.global_shape}"

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """Where it lies, as the checkpoint writes it down."""
        return ChunkStorageMetadata(torch.Size(self.starts), self.tensor.shape)

    @property
    def is_empty(self) -> bool:
        return self.tensor.numel() == 0

    def fill(self, whole: Tensor) -> None:
        """Takes its box of the whole tensor, cast to its own dtype."""
        for dim, (start, size) in enumerate(zip(self.starts, self.tensor.shape, strict=True)):
            whole = whole.narrow(dim, start, size)
        self.tensor.copy_(whole)


Pieces = Mapping[str, Tensor | Piece]
"""Tensors by name; a plain one is whole, and the same on every process that names it."""


def as_pieces(tensors: Pieces) -> dict[str, Piece]:
    """Every tensor as a piece; one that wants gradients is reached through its data."""
    found = {}
    for name, given in tensors.items():
        if isinstance(given, Piece):
            found[name] = given
        else:
            whole = given.detach()
            found[name] = Piece(
                tensor=whole, global_shape=tuple(whole.shape), starts=(0,) * whole.dim()
            )
    return found


class PieceWriter(DefaultSavePlanner):
    """Writes boxes, one that several processes hold once, and objects beside them."""

    def __init__(
        self, pieces: Mapping[str, Piece], objects: Mapping[str, Any] | None = None
    ) -> None:
        """`objects` are pickled; only the first process may name any."""
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._pieces, self._objects = pieces, objects or {}

    def create_local_plan(self) -> SavePlan:
        """What this process could write."""
        items = [
            WriteItem(
                index=MetadataIndex(name, piece.chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=piece.chunk,
                    properties=TensorProperties.create_from_tensor(piece.tensor),
                    size=torch.Size(piece.global_shape),
                ),
            )
            for name, piece in self._pieces.items()
            if not piece.is_empty
        ]
        items += [
            WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO)
            for name in self._objects
        ]
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The tensor of a box, or an object."""
        piece = self._pieces.get(index.fqn)
        return self._objects[index.fqn] if piece is None else piece.tensor


class PieceReader(DefaultLoadPlanner):
    """Reads boxes, each out of those saved boxes that it overlaps."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._pieces = pieces

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Keeps what the checkpoint says of itself."""
        self.state_dict, self.metadata = state_dict, metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """What this process reads."""
        assert self.metadata is not None, "a plan without a checkpoint"
        items = []
        for name, piece in self._pieces.items():
            saved = self.metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata), f"{name} was not saved as a tensor"
            if not piece.is_empty:
                items += create_read_items_for_chunk_list(name, saved, [piece.chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The tensor that a box is read into."""
        return self._pieces[index.fqn].tensor
