"""Whole tensors out of parts that many processes hold, one after the other."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.carriers.buckets import grouped
from tandem.checkpoint.names import to_hugging_face
from tandem.kernels.digest import digest_all
from tandem.models.part import gather_whole
from tandem.train.model import Model

AT_ONCE = 2**29
"""Bytes of whole tensors that are held to be digested together."""


def published(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its Hugging Face name, whole, on every process; all walk to the end.

    One tensor of ours is gathered at a time.
    """
    return to_hugging_face(model.shape, whole_tensors(model))


def published_digests(model: Model) -> dict[str, int]:
    """The digest of every tensor that `published` gives, by its name."""
    found: dict[str, int] = {}
    for some in grouped(published(model), AT_ONCE):  # one wait for the device each
        found |= digest_all(some)
    return found


@torch.no_grad()
def whole_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The same under our names, each once: a tied embedding comes from the first stage."""
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
