"""Which process does which part: the only place that computes ranks.

Ranks are numbered with the tensor axis fastest, then context, then data, then pipeline (Megatron's
`tp-cp-dp-pp`). Experts see the processes of one pipeline stage through axes of their own: expert
tensor fastest, then expert, then what is left, over which equal experts are repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """This process's place on the mesh's axes, and what packing must know of its device."""

    data_rank: int | None = 0  # None: all, those of rank 0 first
    data_size: int = 1
    context_size: int = 1
    row_multiple: int = 1  # tokens that a packed row is padded to a multiple of
    sequence_cost: Callable[[int], float] = float  # work of a sequence of that many tokens

    def __post_init__(self) -> None:
        assert 0 <= (self.data_rank or 0) < self.data_size, f"no data rank {self.data_rank}"
        assert self.row_multiple >= 1, f"rows cannot be a multiple of {self.row_multiple}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis of the mesh as one process sees it; of size 1 it has no group and costs nothing."""

    rank: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)  # of the whole world, in the order of this axis
    group: Any = field(default=None, compare=False)  # a torch ProcessGroup, None at size 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1


ALONE = Axis()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How many processes share each kind of work; `data` follows from the number of all."""

    tensor: int = 1
    context: int = 1
    data: int = 1
    pipeline: int = 1
    expert: int = 1
    expert_tensor: int = 1

    @property
    def world(self) -> int:
        return self.tensor * self.context * self.data * self.pipeline

    @property
    def is_whole(self) -> bool:
        """Whether every process holds every weight, whole."""
        return max(self.tensor, self.pipeline, self.expert, self.expert_tensor) == 1

    @property
    def stage(self) -> int:
        """Processes of one pipeline stage."""
        return self.tensor * self.context * self.data

    @property
    def expert_data(self) -> int:
        """Processes that hold the same experts."""
        return self.stage // (self.expert * self.expert_tensor)


def sizes_of(
    world: int,
    *,
    tensor: int = 1,
    context: int = 1,
    pipeline: int = 1,
    expert: int = 1,
    expert_tensor: int = 1,
) -> Sizes:
    """The sizes of all axes for `world` processes; raises ConfigError when they do not factor."""
    model = tensor * context * pipeline
    if world % model:
        raise ConfigError(
            f"{world} training processes cannot be split into tensor {tensor} x context {context} "
            f"x pipeline {pipeline} = {model}; set --actor-num-nodes x --actor-num-gpus-per-node "
            f"to a multiple of {model}, or the parallel sizes to divisors of {world}"
        )
    sizes = Sizes(
        tensor=tensor,
        context=context,
        data=world // model,
        pipeline=pipeline,
        expert=expert,
        expert_tensor=expert_tensor,
    )
    if sizes.stage % (expert * expert_tensor):
        raise ConfigError(
            f"a pipeline stage has {sizes.stage} processes, which cannot be split into expert "
            f"{expert} x expert tensor {expert_tensor}; set --expert-model-parallel-size to a "
            f"divisor of {sizes.stage // expert_tensor if expert_tensor else sizes.stage}"
        )
    return sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Where one process stands on every axis; `Mesh()` is a process alone."""

    rank: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    tensor: Axis = ALONE
    context: Axis = ALONE
    data: Axis = ALONE
    pipeline: Axis = ALONE
    data_context: Axis = ALONE  # the processes that hold the same dense weights
    expert: Axis = ALONE
    expert_tensor: Axis = ALONE
    expert_data: Axis = ALONE  # the processes that hold the same experts
    ends: Axis = ALONE  # first and last pipeline stage, where both hold the embedding
    world: Axis = ALONE


def row_multiple(mesh: Mesh) -> int:
    """What the tokens of a packed row must be a multiple of, to be cut alike for every process."""
    context = 2 * mesh.context.size if mesh.context.size > 1 else 1  # two chunks each
    return mesh.tensor.size * context


AXES = (
    "tensor",
    "context",
    "data",
    "pipeline",
    "data_context",
    "expert",
    "expert_tensor",
    "expert_data",
    "ends",
    "world",
)


def axis_groups(name: str, sizes: Sizes) -> list[list[int]]:
    """The ranks of every group of one axis, each in the order of that axis.

    Every process is in exactly one group of an axis, but for `ends`: only processes of the first
    and the last pipeline stage are in one.
    """
    strides = {
        "tensor": 1,
        "context": sizes.tensor,
        "data": sizes.tensor * sizes.context,
        "pipeline": sizes.stage,
    }
    expert_strides = {
        "expert_tensor": 1,
        "expert": sizes.expert_tensor,
        "expert_data": sizes.expert_tensor * sizes.expert,
    }
    world = range(sizes.world)
    if name == "world":
        return [list(world)]
    if name == "data_context":
        step, count = sizes.tensor, sizes.context * sizes.data
        firsts = [r for r in world if r % sizes.stage < step]
        return [[first + i * step for i in range(count)] for first in firsts]
    if name == "ends":
        if sizes.pipeline == 1:
            return [[rank] for rank in world]
        last = (sizes.pipeline - 1) * sizes.stage
        return [[rank, rank + last] for rank in range(sizes.stage)]
    stride = strides[name] if name in strides else expert_strides[name]
    size = getattr(sizes, name)
    firsts = [r for r in world if (r // stride) % size == 0 and _is_in_stage(name, r, sizes)]
    return [[first + i * stride for i in range(size)] for first in firsts]


def _is_in_stage(name: str, rank: int, sizes: Sizes) -> bool:
    return name != "pipeline" or rank < sizes.stage


def make_mesh(rank: int, sizes: Sizes, new_group: Callable[[Sequence[int]], Any]) -> Mesh:
    """This process's mesh. Every process makes every group, in the same order.

    `new_group` is `torch.distributed.new_group` with its backend and time limit bound.
    """
    made: dict[tuple[int, ...], Any] = {}
    axes: dict[str, Axis] = {}
    for name in AXES:
        axes[name] = Axis(rank=0, size=1, ranks=(rank,))
        for ranks in map(tuple, axis_groups(name, sizes)):
            if len(ranks) > 1 and ranks not in made:
                made[ranks] = new_group(ranks)
            if rank in ranks:
                axes[name] = Axis(
                    rank=ranks.index(rank), size=len(ranks), ranks=ranks, group=made.get(ranks)
                )
    return Mesh(rank=rank, sizes=sizes, **axes)
