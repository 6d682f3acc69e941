"""Which boxes a process writes and reads, as PyTorch's distributed checkpoint asks for it.

Imported where a checkpoint is written or read: PyTorch's part of it takes a second to import.
"""

from collections.abc import Mapping
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

from tandem.checkpoint.pieces import Piece


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
                index=MetadataIndex(name, torch.Size(piece.starts)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_chunk(piece),
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
                items += create_read_items_for_chunk_list(name, saved, [_chunk(piece)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The tensor that a box is read into."""
        return self._pieces[index.fqn].tensor


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    """Where a box lies, as the checkpoint writes it down."""
    return ChunkStorageMetadata(torch.Size(piece.starts), piece.tensor.shape)
