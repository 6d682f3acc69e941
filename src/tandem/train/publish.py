"""The policy's weights as engines get them, with their proofs; gathered where many processes hold
parts of them."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.carriers.digested import Digested
from tandem.checkpoint.names import to_hugging_face
from tandem.kernels.digest import start_digests
from tandem.kernels.replay import Replayed
from tandem.models.part import gather_whole
from tandem.train.canary import canary
from tandem.train.model import Model
from tandem.types import Digests, Weights


def weights_of(model: Model, version: int, replayed: Replayed) -> Weights:
    """The weights as they are now. On a GPU their proofs are under way, and nobody waits yet.

    Where processes hold parts of them, all must walk `named` to its end: it gathers one tensor at
    a time, of which digests are made on its way. Those of the parts are made when somebody looks.
    """
    said = canary(model, replayed)  # first: a GPU reads all tensors beside it
    stored = dict(model.named_parameters())
    if not model.is_whole:
        walk = Digested(named_of(model))
        return Weights(
            version=version,
            named=walk,
            stored=stored,
            digests=Digests(walk.digests),
            parts=Digests(lambda: start_digests(stored.items())),
            canary=said,
        )
    return Weights(
        version=version,
        named=named_of(model),
        is_shared=True,
        stored=stored,
        digests=start_digests(stored.items()),
        canary=said,
    )


def named_of(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its Hugging Face name, whole, one of ours gathered at a time.

    Our storage, or copies where our layout differs. Where processes hold parts, all of them walk
    to the end.
    """
    whole = model.tensors().items() if model.is_whole else whole_tensors(model)
    yield from to_hugging_face(model.shape, whole)


@torch.no_grad()
def whole_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under our name, each once: a tied embedding comes from the first stage."""
    axis = model.mesh.pipeline
    seen: set[str] = set()
    for stage, listed in enumerate(_stages(model)):
        owner = stage % axis.size
        for name, shape in listed:
            if name in seen:
                continue
            seen.add(name)
            if owner == axis.rank:
                part = model.parts[stage // axis.size]
                tensor = gather_whole(
                    part.get_parameter(name).detach(), part.shards()[name], model.mesh
                )
            else:
                dtype = model.parts[0].dtype
                tensor = torch.empty(shape, dtype=dtype, device=model.device)
            if axis.size > 1:
                tensor = tensor.contiguous()
                dist.broadcast(tensor, src=axis.ranks[owner], group=axis.group)
            yield name, tensor


def _stages(model: Model) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Names and whole sizes of the tensors of every stage, in order."""
    own = [
        [(name, shard.global_shape) for name, shard in part.shards().items()]
        for part in model.parts
    ]
    axis = model.mesh.pipeline
    if axis.size == 1:
        return own
    found: list[Any] = [None] * axis.size
    dist.all_gather_object(found, own, group=axis.group)
    return [found[rank][chunk] for chunk in range(len(own)) for rank in range(axis.size)]
