"""Megatron-Core's `torch_dist` checkpoints: the weights of a GPT model, read and written.

It is PyTorch's distributed checkpoint under other names. The tensors of all layers are one, with
the layer as dim 0 (`decoder.layers.mlp.linear_fc2.weight [L, D, F]`), or, where layers differ, one
each (`decoder.layers.3.mlp.linear_fc2.weight`). `linear_qkv` groups its rows as ours are; those of
`linear_fc1` are all gates and then all ups. The vocabulary may be padded. Written after reading
what Megatron-Core 0.16.1 writes and reads.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tandem.checkpoint.folders import hidden_folder, publish_file, publish_folder
from tandem.checkpoint.names import LAYER, report
from tandem.checkpoint.pieces import Piece, as_pieces
from tandem.errors import CheckpointError
from tandem.models.shape import Shape

RELEASE, TRACKER = "release", "latest_checkpointed_iteration.txt"
COMMON, BACKEND = "common.pt", "metadata.json"

_OUTER = {
    "embed.weight": "embedding.word_embeddings.weight",
    "norm.weight": "decoder.final_layernorm.weight",
    "head.weight": "output_layer.weight",
}
_INNER = {
    "norm1.weight": ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    "qkv.weight": ("self_attention.linear_qkv.weight",),
    "qkv.bias": ("self_attention.linear_qkv.bias",),
    "q_norm.weight": ("self_attention.q_layernorm.weight",),
    "k_norm.weight": ("self_attention.k_layernorm.weight",),
    "out.weight": ("self_attention.linear_proj.weight",),
    "norm2.weight": ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    "gate_up.weight": ("mlp.linear_fc1.weight",),
    "down.weight": ("mlp.linear_fc2.weight",),
}
"""Names in a layer; the first is what Megatron-Core writes now, any of them is read."""
_STATES = (
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""Modules of which a reader wants an extra state, empty outside 8-bit training."""
_OF_VOCABULARY = ("embed.weight", "head.weight")


class Saved(NamedTuple):
    """What a checkpoint says of one tensor."""

    size: tuple[int, ...]
    dtype: torch.dtype


def is_megatron(folder: Path) -> bool:
    """Whether Megatron-Core wrote this folder, whole: its common state is written last."""
    return (folder / COMMON).is_file() and (folder / ".metadata").is_file()


def read_megatron(
    folder: Path, wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of these sizes by our name, one by one, whole, in the dtype of the file.

    Rows that pad the vocabulary are cut off. Raises CheckpointError with every tensor that is
    missing or of another size, before the first is read.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from tandem.checkpoint.planners import PieceReader

    reader = dcp.FileSystemReader(folder)
    saved = {
        name: Saved(tuple(entry.size), entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    places = {ours: _place(ours, saved) for ours in wanted}
    found = {
        ours: place and place[1].size[place[2] is not None :] for ours, place in places.items()
    }
    flaws = (_flaw(ours, size, found[ours]) for ours, size in wanted.items())
    lines = [flaw for flaw in flaws if flaw is not None]
    if lines:
        raise CheckpointError(f"{folder}, written by Megatron, is of another model:{report(lines)}")
    for ours, place in places.items():
        assert place is not None, "what is missing was reported"
        name, (size, dtype), layer = place
        tensor = torch.empty(size if layer is None else (1, *size[1:]), dtype=dtype)
        starts = (layer or 0,) + (0,) * (len(size) - 1)
        piece = {name: Piece(tensor=tensor, global_shape=size, starts=starts)}
        with quietly_alone():
            dcp.load(dict(piece), storage_reader=reader, planner=PieceReader(piece), no_dist=True)
        yield ours, _ours(ours, tensor if layer is None else tensor[0], wanted[ours])


def write_megatron(named: Iterable[tuple[str, Tensor]], root: str | Path, shape: Shape) -> Path:
    """The `release` folder that now holds these tensors, by our name, as Megatron-Core reads them.

    Raises CheckpointError for a mixture of experts, whose names are not known here.
    """
    import torch.distributed.checkpoint as dcp

    from tandem.checkpoint.planners import PieceWriter

    if shape.mixture is not None:
        raise CheckpointError("a mixture of experts cannot be written in Megatron's form yet")
    stacked: dict[str, list[Tensor]] = {}
    for ours, tensor in named:
        inner = LAYER.fullmatch(ours)
        theirs = _OUTER[ours] if inner is None else f"decoder.layers.{_INNER[inner[2]][0]}"
        stacked.setdefault(theirs, []).append(_theirs(ours, tensor))
    pieces = as_pieces(
        {
            name: torch.stack(parts) if name.startswith("decoder.layers.") else parts[0]
            for name, parts in stacked.items()
        }
    )
    states = {
        f"decoder.layers.{module}._extra_state/shard_{i}_{shape.num_layers}": [None]
        for module in _STATES
        for i in range(shape.num_layers)
    }
    final = Path(root) / RELEASE
    temporary = hidden_folder(final)
    writer = dcp.FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True)
    with quietly_alone():
        planner = PieceWriter(pieces, states)
        dcp.save(dict(pieces), storage_writer=writer, planner=planner, no_dist=True)
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    backend |= {"common_backend": "torch", "common_backend_version": 1}
    (temporary / BACKEND).write_text(json.dumps(backend), encoding="utf-8")
    torch.save({"iteration": 0, "checkpoint_version": 3.0, "args": None}, temporary / COMMON)
    publish_folder(temporary, final)
    publish_file(final.parent / TRACKER, f"{RELEASE}\n")
    return final


@contextmanager
def quietly_alone() -> Iterator[None]:
    """Inside, a process may read and write by itself without torch's warning about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _place(ours: str, saved: Mapping[str, Saved]) -> tuple[str, Saved, int | None] | None:
    """Where our tensor lies: the name, what is saved under it, and the layer if it is dim 0."""
    inner = LAYER.fullmatch(ours)
    if inner is None:
        name = _OUTER.get(ours)
        return None if name is None or name not in saved else (name, saved[name], None)
    for part in _INNER.get(inner[2], ()):
        stacked, single = f"decoder.layers.{part}", f"decoder.layers.{inner[1]}.{part}"
        if single in saved:
            return single, saved[single], None
        if stacked in saved and int(inner[1]) < saved[stacked].size[0]:
            return stacked, saved[stacked], int(inner[1])
    return None


def _flaw(ours: str, wanted: tuple[int, ...], found: tuple[int, ...] | None) -> str | None:
    if found is None:
        return f"missing: {ours}"
    is_padded = ours in _OF_VOCABULARY and found[0] >= wanted[0] and found[1:] == wanted[1:]
    if found == wanted or is_padded:
        return None
    return f"of another size: {ours} is {found}, wanted {wanted}"


def _ours(ours: str, theirs: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Our tensor, whole, of Megatron's."""
    if ours.endswith("gate_up.weight"):  # rows of gate and up alternate
        return torch.stack(theirs.chunk(2), dim=1).reshape(wanted)
    return theirs[: wanted[0]]


def _theirs(ours: str, tensor: Tensor) -> Tensor:
    """Megatron's tensor of ours; the inverse of `_ours`, without padding."""
    if ours.endswith("gate_up.weight"):
        return tensor.view(-1, 2, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
    return tensor
