"""How training is split over devices, and what is computed twice to save memory."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """Parallelism"""

    tensor_model_parallel_size: int = 1
    """Devices that share one matrix."""
    sequence_parallel: bool = False
    """Split norms and residuals along the sequence over tensor-parallel ranks."""
    pipeline_model_parallel_size: int = 1
    """Devices that share the layers in stages."""
    decoder_first_pipeline_num_layers: int | None = None
    """Layers of the first stage, when not even."""
    decoder_last_pipeline_num_layers: int | None = None
    """Layers of the last stage, when not even."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers per virtual stage (interleaved schedule)."""
    num_virtual_stages_per_pipeline_rank: int | None = None
    """Virtual stages per rank (interleaved schedule)."""
    context_parallel_size: int = 1
    """Devices that share one sequence."""
    allgather_cp: bool = False
    """Contiguous layout of context parallelism with all-gathered keys."""
    expert_model_parallel_size: int = 1
    """Devices that share the experts."""
    expert_tensor_parallel_size: int | None = None
    """Devices that share one expert's matrices; tensor-parallel size when unset."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Compute activations again in the backward pass: whole layers, or only what SwiGLU gives
    (attention keeps no scores here)."""
    recompute_method: Literal["uniform", "block"] | None = None
    """`uniform`: every group of layers; `block`: the first ones only."""
    recompute_num_layers: int | None = None
    """Layers per group (`uniform`) or layers recomputed (`block`)."""
