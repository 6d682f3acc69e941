"""Where the tensors of this process lie in those of the whole run, for checkpoints."""

from collections.abc import Mapping

from torch import Tensor

from tandem.checkpoint.pieces import Piece, Pieces
from tandem.models.part import Shard
from tandem.train.model import Model
from tandem.train.optimizer import STEP, AdamW


def piece_of(tensor: Tensor, shard: Shard | None, first_row: int = 0, rows: int = 0) -> Piece:
    """A tensor's place in the whole one.

    `shard` is what the process holds of the parameter, None for all of it; the tensor is its rows
    from `first_row` on, of `rows` in all.
    """
    shape = (rows or len(tensor), *tensor.shape[1:]) if shard is None else shard.global_shape
    starts = [0] * len(shape)
    for cut in () if shard is None else shard.cuts:
        starts[cut.dim] += cut.start
    starts[0] += first_row
    return Piece(tensor=tensor, global_shape=tuple(shape), starts=tuple(starts))


def shards_of(model: Model) -> dict[str, Shard]:
    """What every parameter here is of the whole model's, by name."""
    return {name: shard for part in model.parts for name, shard in part.shards().items()}


def model_pieces(model: Model, prefix: str) -> dict[str, Piece]:
    """Every parameter of a model, in place, by its name behind `prefix`."""
    shards = shards_of(model)
    return {
        prefix + name: piece_of(tensor, shards[name]) for name, tensor in model.tensors().items()
    }


def optimizer_pieces(optimizer: AdamW, shards: Mapping[str, Shard], prefix: str = "") -> Pieces:
    """The optimizer's state, in place: of every parameter the rows that this process owns."""
    pieces: dict[str, Piece | Tensor] = {}
    for key, tensor in optimizer.tensors().items():
        if key == STEP:
            pieces[prefix + key] = tensor
            continue
        name = optimizer.parameter_of(key)
        first, rows = optimizer.own_rows(name).start, optimizer.num_rows(name)
        pieces[prefix + key] = piece_of(tensor, shards.get(name), first, rows)
    return pieces
