"""What the processes of a mesh tell each other about a step."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tandem.models.decoder import Decoder
from tandem.parallel import Mesh
from tandem.parallel.collectives import max_, sum_
from tandem.train.shards import Spread

Column = tuple[np.ndarray, ...]
"""One array for each sample of a group."""

Value = TypeVar("Value")


def whole_columns(columns: Sequence[Column], mesh: Mesh, device: torch.device) -> list[Column]:
    """The columns of all groups with the tokens that any data rank scored."""
    if mesh.data.size == 1 or not columns:
        return list(columns)
    arrays = [array_T for column in columns for array_T in column]
    joined = torch.from_numpy(np.concatenate(arrays)).to(device)
    summed = sum_(joined, mesh.data).cpu().numpy()
    parts = iter(np.split(summed, np.cumsum([len(array_T) for array_T in arrays])[:-1]))
    return [tuple(next(parts) for _ in column) for column in columns]


def summed_metrics(totals: Mapping[str, Tensor], mesh: Mesh) -> dict[str, Tensor]:
    """The metrics of a step, scalars by name, over all data ranks; context ranks have the same."""
    if mesh.data.size == 1 or not totals:
        return dict(totals)
    joined = torch.stack([total.double() for total in totals.values()])
    return dict(zip(totals, sum_(joined, mesh.data), strict=True))


def summed_numbers(numbers: Sequence[float], mesh: Mesh, device: torch.device) -> list[float]:
    """The sum over data ranks of each number."""
    if mesh.data.size == 1:
        return list(numbers)
    joined = torch.tensor(numbers, dtype=torch.float64, device=device)
    return sum_(joined, mesh.data).tolist()


def longest(seconds: Mapping[str, float], mesh: Mesh, device: torch.device) -> dict[str, float]:
    """The longest time that any process took for each phase."""
    if mesh.world.size == 1 or not seconds:
        return dict(seconds)
    joined = torch.tensor(list(seconds.values()), dtype=torch.float64, device=device)
    return dict(zip(seconds, max_(joined, mesh.world).tolist(), strict=True))


def from_last_stage(value: Value, mesh: Mesh) -> Value:
    """The last pipeline stage's value, on every stage."""
    if mesh.pipeline.size == 1:
        return value
    box = [value]
    last = mesh.pipeline.ranks[-1]
    dist.broadcast_object_list(box, src=last, group=mesh.pipeline.group)
    return box[0]


def spreads_of(parts: Sequence[Decoder]) -> dict[str, Spread]:
    """How every parameter of these parts of a decoder lies on the mesh, by name."""
    spreads = {}
    for part in parts:
        shards, mesh = part.shards(), part.part.mesh
        for name, (over, *partial) in part.gradient_axes().items():
            is_split = any(cut.axis_name == "tensor" for cut in shards[name].cuts)
            is_replica = over == "data_context" and not is_split and mesh.tensor.rank > 0
            is_second_end = "ends" in partial and mesh.ends.rank > 0
            spreads[name] = Spread(
                over=getattr(mesh, over),
                partial=tuple(getattr(mesh, axis) for axis in partial),
                is_counted=not (is_replica or is_second_end),
            )
    return spreads
