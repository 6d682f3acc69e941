"""How large the cache is."""

import math

import torch

from tandem.config import EngineConfig
from tandem.errors import ResourceError
from tandem.models.shape import Shape
from tandem.parallel.collectives import max_
from tandem.parallel.mesh import ALONE, Axis

CPU_CACHE_BYTES = 1 << 30
"""What the cache takes at most on a CPU, unless `--engine-cache-tokens` says otherwise."""

DEVICE_FRACTION = 0.85
"""Share of device memory for weights and cache when `--sglang-mem-fraction-static` is unset."""


def token_bytes(
    shape: Shape, dtype: torch.dtype, records_experts: bool = False, num_ranks: int = 1
) -> int:
    """Bytes of one token's keys and values in all layers, of the heads that each of `num_ranks`
    has, and of its experts if they are kept."""
    num_heads = shape.num_key_heads // num_ranks
    keys_and_values = 2 * shape.num_layers * num_heads * shape.head_size * dtype.itemsize
    return keys_and_values + records_experts * 2 * math.prod(expert_sizes(shape))


def expert_sizes(shape: Shape) -> tuple[int, int]:
    """Layers with experts, and experts that a token takes in each."""
    mixture = shape.mixture
    return (0, 0) if mixture is None else (len(mixture.layers), mixture.per_token)


def num_cache_blocks(
    cfg: EngineConfig,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    records_experts: bool = False,
    axis: Axis = ALONE,
) -> int:
    """The number of blocks that settings and memory give; raises ResourceError if none fits.

    On an `axis` of several ranks, which share the heads, that which the least memory gives.
    """
    needed = cfg.engine_max_running * shape.max_positions
    each = token_bytes(shape, dtype, records_experts, axis.size)
    if cfg.engine_cache_tokens is not None:
        tokens = cfg.engine_cache_tokens
    else:
        tokens = min(needed, _cache_bytes(cfg, device) // each)
        tokens = -int(max_(torch.tensor(-tokens, device=device), axis))
    if tokens < cfg.engine_block_size:
        raise ResourceError(
            f"the engine's cache would hold {tokens} tokens of {each} bytes, "
            f"less than one block of {cfg.engine_block_size}; raise --engine-cache-tokens or "
            "--sglang-mem-fraction-static, or lower --engine-block-size"
        )
    return tokens // cfg.engine_block_size


def _cache_bytes(cfg: EngineConfig, device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_CACHE_BYTES
    fraction = cfg.sglang_mem_fraction_static
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    reserved = torch.cuda.memory_reserved(device)
    return device_cache_bytes(
        DEVICE_FRACTION if fraction is None else fraction,
        total=total,
        free=free + reserved - held,
        held=held,
    )


def device_cache_bytes(fraction: float, *, total: int, free: int, held: int) -> int:
    """Bytes for the cache such that it and what this process holds (weights, optimizer state) stay
    within `fraction` of the device, and that it fits beside what others hold."""
    spare = int((1 - fraction) * total)
    return max(0, min(int(fraction * total) - held, free - spare))
