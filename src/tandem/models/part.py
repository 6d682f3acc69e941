"""Which part of a decoder one process holds: the layers of a stage, shards of their matrices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tandem.config import ParallelConfig
from tandem.errors import ConfigError
from tandem.models.shape import Shape
from tandem.parallel.collectives import scatter_rows, start_gather, sum_out
from tandem.parallel.mesh import Axis, Mesh, Sizes, sizes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one process holds of a decoder, and how it works with those that hold the rest."""

    mesh: Mesh = field(default_factory=Mesh)
    layers: range | None = None  # None: all
    is_first: bool = True  # embeds the tokens
    is_last: bool = True  # has the final norm and the head
    sequence_parallel: bool = False  # between matrices each tensor rank has its rows alone

    @property
    def splits_rows(self) -> bool:
        """Whether the stream between matrices is `[T / tensor, D]`."""
        return self.sequence_parallel and self.mesh.tensor.size > 1


WHOLE = Part()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """One dim of a tensor divided over an axis; this process has `size` entries from `start` on."""

    dim: int
    axis_name: str
    start: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What a process holds of one tensor; without cuts all of it."""

    global_shape: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()

    def of(self, whole: Tensor) -> Tensor:
        """This process's part of the whole tensor, a view."""
        for cut in self.cuts:
            whole = whole.narrow(cut.dim, cut.start, cut.size)
        return whole


def leave(x_TD: Tensor, part: Part) -> Tensor:
    """The rows of the stream, summed from what matrices divided over their inputs give."""
    tensor = part.mesh.tensor
    return scatter_rows(x_TD, tensor) if part.splits_rows else sum_out(x_TD, tensor)


def share(total: int, axis: Axis) -> tuple[int, int]:
    """(first, how many) of `total` entries are this rank's; the last ranks may have fewer."""
    most = -(-total // axis.size)
    start = min(axis.rank * most, total)
    return start, min(most, total - start)


_TENSOR_ROWS, _TENSOR_COLUMNS = ((0, "tensor"),), ((1, "tensor"),)
_CUTS: dict[str, tuple[tuple[int, str], ...]] = {
    "embed.weight": _TENSOR_ROWS,
    "head.weight": _TENSOR_ROWS,
    "qkv.weight": _TENSOR_ROWS,
    "qkv.bias": _TENSOR_ROWS,
    "gate_up.weight": _TENSOR_ROWS,
    "out.weight": _TENSOR_COLUMNS,
    "down.weight": _TENSOR_COLUMNS,
    "experts.gate_up.weight": ((0, "expert"), (1, "expert_tensor")),
    "experts.down.weight": ((0, "expert"), (2, "expert_tensor")),
}
"""(dim, axis) of the cuts of a tensor, by its name without the layer; all others are whole."""

OF_VOCABULARY = ("embed.weight", "head.weight")
"""Tensors whose rows are tokens, which a number of ranks need not divide."""


def shard_of(name: str, local_shape: Sequence[int], shape: Shape, mesh: Mesh) -> Shard:
    """What a tensor of `local_shape`, by our name, is of the whole one."""
    sizes, cuts = list(local_shape), []
    for dim, axis_name in _CUTS.get(without_layer(name), ()):
        axis = getattr(mesh, axis_name)
        if axis.size == 1:
            continue
        total = shape.vocab if name in OF_VOCABULARY else local_shape[dim] * axis.size
        start, size = share(total, axis)
        assert size == local_shape[dim], f"{name} has {local_shape[dim]} of {total}, not {size}"
        cuts.append(Cut(dim=dim, axis_name=axis_name, start=start, size=size))
        sizes[dim] = total
    return Shard(global_shape=tuple(sizes), cuts=tuple(cuts))


def gradient_axes(name: str, part: Part, *, tied: bool) -> tuple[str, ...]:
    """The axes over which a parameter's gradients are to be summed, before it is used.

    Ranks of any other axis have the same gradient or another parameter.
    """
    inner = without_layer(name)
    if inner.startswith("experts.") and "shared" not in inner and "router" not in inner:
        return ("expert_data",)
    axes = ["data_context"]
    # each rank saw its rows only, or its heads only
    is_partial = part.splits_rows or inner in ("q_norm.weight", "k_norm.weight")
    if part.mesh.tensor.size > 1 and is_partial and inner not in _CUTS:
        axes.append("tensor")
    if tied and inner == "embed.weight" and part.mesh.ends.size > 1:
        axes.append("ends")
    return tuple(axes)


def gather_whole(tensor: Tensor, shard: Shard, mesh: Mesh) -> Tensor:
    """The whole tensor on every rank that holds a part of it; all of them must call."""
    for cut in shard.cuts:
        axis = getattr(mesh, cut.axis_name)
        total = shard.global_shape[cut.dim]
        most = -(-total // axis.size)
        if most * axis.size != total:
            sizes = list(tensor.shape)
            sizes[cut.dim] = most
            even = tensor.new_zeros(sizes)
            even.narrow(cut.dim, 0, cut.size).copy_(tensor)
            tensor = even
        rows = start_gather(tensor, axis).wait()
        if cut.dim:
            rows = torch.cat(rows.chunk(axis.size), dim=cut.dim)
        tensor = rows.narrow(cut.dim, 0, total)
    return tensor


def without_layer(name: str) -> str:
    """`qkv.weight` of `layers.7.qkv.weight`; other names as they are."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def sizes_for(world: int, cfg: ParallelConfig) -> Sizes:
    """The sizes of all axes for `world` training processes; raises ConfigError."""
    return sizes_of(
        world,
        tensor=cfg.tensor_model_parallel_size,
        context=cfg.context_parallel_size,
        pipeline=cfg.pipeline_model_parallel_size,
        expert=cfg.expert_model_parallel_size,
        expert_tensor=cfg.expert_tensor_parallel_size or cfg.tensor_model_parallel_size,
    )


def check_parts(shape: Shape, world: int, cfg: ParallelConfig) -> None:
    """Passes if `world` processes can share this model as asked; else ConfigError with all that
    is in the way."""
    failures = list(refusals(shape, sizes_for(world, cfg), cfg))
    if failures:
        raise ConfigError(failures)


def parts_of(shape: Shape, mesh: Mesh, cfg: ParallelConfig) -> tuple[Part, ...]:
    """The parts that this process holds, one for each of its virtual stages, first ones first.

    Stage s of all P x V stages is on pipeline rank s mod P. Raises ConfigError when the model
    cannot be divided so.
    """
    failures = list(refusals(shape, mesh.sizes, cfg))
    if failures:
        raise ConfigError(failures)
    stages = _stages(shape.num_layers, mesh.sizes.pipeline, cfg)
    return tuple(
        Part(
            mesh=mesh,
            layers=stages[i],
            is_first=i == 0,
            is_last=i == len(stages) - 1,
            sequence_parallel=cfg.sequence_parallel,
        )
        for i in range(mesh.pipeline.rank, len(stages), mesh.sizes.pipeline)
    )


def refusals(shape: Shape, sizes: Sizes, cfg: ParallelConfig) -> Iterator[str]:
    """One sentence for every way in which this model cannot be divided as asked."""
    mixture = shape.mixture
    tensor = ("--tensor-model-parallel-size", sizes.tensor)
    divided = [(*tensor, "attention heads", shape.num_heads)]
    divided.append((*tensor, "key heads", shape.num_key_heads))
    if mixture is None or len(mixture.layers) < shape.num_layers:
        divided.append((*tensor, "feed-forward columns", shape.ffn))
    if mixture is not None:
        expert = ("--expert-model-parallel-size", sizes.expert)
        divided.append((*expert, "experts", mixture.num_experts))
        columns = ("--expert-tensor-parallel-size", sizes.expert_tensor)
        divided.append((*columns, "columns of an expert", mixture.ffn))
    for flag, size, what, count in divided:
        if count % size:
            yield (
                f"{flag} {size} does not divide the model's {count} {what}; set a divisor of "
                f"{count}"
            )
    if mixture is None and sizes.expert > 1:
        yield f"--expert-model-parallel-size {sizes.expert}: this model has no experts; set 1"
    if mixture is not None and sizes.tensor > 1 and not cfg.sequence_parallel:
        yield (
            "a model with experts and --tensor-model-parallel-size needs --sequence-parallel: else "
            "every tensor rank would send the same tokens to the experts"
        )
    if shape.vocab <= (sizes.tensor - 1) * -(-shape.vocab // sizes.tensor):
        yield (
            f"--tensor-model-parallel-size {sizes.tensor} leaves a process without any of the "
            f"{shape.vocab} tokens of the vocabulary; set a smaller one"
        )
    yield from _stage_refusals(shape.num_layers, sizes.pipeline, cfg)


def _stage_refusals(num_layers: int, pipeline: int, cfg: ParallelConfig) -> Iterator[str]:
    first, last = cfg.decoder_first_pipeline_num_layers, cfg.decoder_last_pipeline_num_layers
    given = [count for count in (first, last) if count is not None]
    left, others = num_layers - sum(given), pipeline - len(given)
    if left < others or (left > 0 and not others):
        yield (
            f"the model's {num_layers} layers do not make {pipeline} stages with {given} layers at "
            "the ends; change --decoder-first-pipeline-num-layers or "
            "--decoder-last-pipeline-num-layers"
        )
    elif others and left % others:
        yield (
            f"--pipeline-model-parallel-size {pipeline} leaves {left} layers to {others} stages, "
            "which is not even; set a size that divides, or --decoder-first-pipeline-num-layers "
            "and --decoder-last-pipeline-num-layers"
        )
    elif left // max(1, others) % (_virtual_flag(cfg) or 1):
        yield (
            f"a stage's {left // others} layers cannot be cut into even virtual stages; set "
            "--num-layers-per-virtual-pipeline-stage or --num-virtual-stages-per-pipeline-rank "
            f"to a divisor of {left // others}"
        )


def virtual_stages(num_layers: int, pipeline: int, cfg: ParallelConfig) -> int:
    """How many stages each pipeline rank has; 1 unless the interleaved schedule is asked for."""
    if cfg.num_layers_per_virtual_pipeline_stage is not None:
        return max(1, num_layers // pipeline // cfg.num_layers_per_virtual_pipeline_stage)
    return cfg.num_virtual_stages_per_pipeline_rank or 1


def _virtual_flag(cfg: ParallelConfig) -> int | None:
    # layers a virtual stage divide a stage exactly if the number of its virtual stages does
    return cfg.num_layers_per_virtual_pipeline_stage or cfg.num_virtual_stages_per_pipeline_rank


def _stages(num_layers: int, pipeline: int, cfg: ParallelConfig) -> list[range]:
    first, last = cfg.decoder_first_pipeline_num_layers, cfg.decoder_last_pipeline_num_layers
    heads, tails = ([] if count is None else [count] for count in (first, last))
    count = pipeline * virtual_stages(num_layers, pipeline, cfg) - len(heads + tails)
    even = [(num_layers - sum(heads + tails)) // count] * count if count else []
    return [range(*ends) for ends in pairwise(accumulate(heads + even + tails, initial=0))]
