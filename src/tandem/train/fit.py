"""Whether training fits the memory of a device, before anything is built there."""

from collections.abc import Mapping

from tandem.config import OptimConfig
from tandem.errors import ResourceError
from tandem.models.decoder import Recompute
from tandem.models.shape import Shape, num_parameters

_MOMENT_BYTES = {"fp32": 4, "bf16": 2}
GIB = 1 << 30


def training_bytes(
    shape: Shape, optim: OptimConfig, *, row_tokens: int, recompute: Recompute | None
) -> dict[str, int]:
    """About what a step in bf16 on one device holds at once, by name.

    The engine's cache is not among it: it is given back while the trainer works. Activations are
    what the layers keep of a row of `row_tokens` for the backward pass; for Qwen3-4B and 10,240
    tokens the sum is 111 GiB, and the peak that was measured on an H200 is 109.
    """
    count = num_parameters(shape)
    needs = {"weights": 2 * count, "fp32 gradients": 4 * count}
    if not optim.optimizer_cpu_offload:
        needs["fp32 master weights"] = 4 * count
        if not optim.use_stateless_adam:
            each = _MOMENT_BYTES[optim.exp_avg_dtype] + _MOMENT_BYTES[optim.exp_avg_sq_dtype]
            needs["moments"] = each * count
    needs[f"activations of {row_tokens:,} tokens"] = row_tokens * _token_bytes(shape, recompute)
    return needs


def _token_bytes(shape: Shape, recompute: Recompute | None) -> int:
    """What the layers keep of a token: two norms' inputs and outputs and the stream (fp32), heads
    before and after their rotation, what attention gives, and the feed-forward block."""
    heads, key_heads, size = shape.num_heads, shape.num_key_heads, shape.head_size
    attention = 14 * shape.width + 4 * (heads + 2 * key_heads) * size + 2 * heads * size
    kept = 0
    for layer in range(shape.num_layers):
        mixture = shape.mixture if shape.has_experts(layer) else None
        ffn = shape.ffn if mixture is None else mixture.ffn * mixture.per_token
        kept += attention + (4 if recompute is not None else 6) * ffn
    if recompute is None or recompute.granularity == "selective":
        return kept
    return 4 * shape.width  # the stream, where a run of layers begins


def check_fit(needs: Mapping[str, int], total: int) -> None:
    """Raises ResourceError, with the numbers, where the needs are more than a device has."""
    needed = sum(needs.values())
    if needed <= total:
        return
    parts = ", ".join(f"{name} {count / GIB:.1f}" for name, count in needs.items())
    raise ResourceError(
        f"training needs about {needed / GIB:.1f} GiB and this device has {total / GIB:.1f}: "
        f"{parts}. Set --recompute-granularity full or a smaller --max-tokens-per-gpu if it is the "
        "activations, --optimizer-cpu-offload if it is the optimizer, or train on more devices"
    )
