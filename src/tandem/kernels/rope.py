"""Rotary position embedding: its table, and the split of a fused projection with it applied."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tandem.errors import CheckpointError
from tandem.kernels.norm import rms_norm


def rope_table(
    head_size: int,
    max_positions: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each `[max_positions, H/2]` fp32, by Hugging Face's rules.

    `scaling` is the `rope_scaling` (or `rope_parameters`) entry of a Hugging Face config: None or
    kind default, linear, llama3, yarn. Raises CheckpointError for a kind that is not one of these.
    Sources: Su et al., "RoFormer", 2021; Peng et al., "YaRN", 2023.
    """
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # computed on the CPU whatever the device, so that every device holds the same bits
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
    inverse = 1.0 / (theta**exponents)
    factor = 1.0
    if kind == "linear":
        inverse = inverse / _need(scaling, "factor")
    elif kind == "llama3":
        inverse = _llama3(inverse, scaling)
    elif kind == "yarn":
        inverse, factor = _yarn(inverse, scaling, head_size, theta)
    elif kind != "default":
        raise CheckpointError(
            f"rope scaling {kind!r} is unknown; default, linear, llama3 and yarn are supported: "
            "use a checkpoint with one of these, or set rope_scaling in its config.json"
        )
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * inverse[None, :]
    return (angles.cos() * factor).to(device), (angles.sin() * factor).to(device)


def qkv_rope(
    qkv_TC: Tensor,
    positions_T: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_key_heads: int,
    head_size: int,
    q_norm_H: Tensor | None,
    k_norm_H: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[T, N, H]`, keys and values `[T, K, H]` of a fused projection, position applied.

    `qkv_TC` is `[T, K * (N/K + 2) * H]`: for each key head its query heads, its key, its value, so
    that tensor parallel is a plain row shard. With `q_norm_H` and `k_norm_H` every head of queries
    and keys is RMS-normalised first (Qwen3). The rotation pairs column i with i + H/2, in fp32.
    """
    num_queries = num_heads // num_key_heads
    heads = qkv_TC.view(qkv_TC.shape[0], num_key_heads, num_queries + 2, head_size)
    q_TNH = heads[:, :, :num_queries].reshape(-1, num_heads, head_size)
    k_TKH, v_TKH = heads[:, :, num_queries], heads[:, :, num_queries + 1]
    if q_norm_H is not None and k_norm_H is not None:
        q_TNH, k_TKH = rms_norm(q_TNH, q_norm_H, eps), rms_norm(k_TKH, k_norm_H, eps)
    cos_TH, sin_TH = cos[positions_T][:, None], sin[positions_T][:, None]
    return _rotate(q_TNH, cos_TH, sin_TH), _rotate(k_TKH, cos_TH, sin_TH), v_TKH.contiguous()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """A rotation; its gradient is the rotation back, so nothing of the input is saved."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half = x.shape[-1] // 2
    turned[..., :half] = (first * cos).addcmul_(second, sin, value=-1)
    turned[..., half:] = (second * cos).addcmul_(first, sin)
    return turned


def _need(scaling: Mapping[str, Any], key: str) -> float:
    if scaling.get(key) is None:
        raise CheckpointError(
            f"the rope scaling of this checkpoint has no {key!r} (it has {sorted(scaling)}): "
            "add it to rope_scaling in config.json"
        )
    return scaling[key]


def _llama3(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Slow waves divided by `factor`, fast ones kept, and a linear blend between (Llama 3.1)."""
    low, high = _need(scaling, "low_freq_factor"), _need(scaling, "high_freq_factor")
    turns = _need(scaling, "original_max_position_embeddings") * inverse / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse * keep + inverse / _need(scaling, "factor") * (1 - keep)


def _yarn(
    inverse: Tensor, scaling: Mapping[str, Any], head_size: int, theta: float
) -> tuple[Tensor, float]:
    """Inverse frequencies blended from scaled (slow) to unscaled (fast), and the table's factor."""
    factor = _need(scaling, "factor")
    original = _need(scaling, "original_max_position_embeddings")

    def column_of(num_turns: float) -> float:
        """The column whose wave turns that often over the original context."""
        return head_size * math.log(original / (num_turns * 2 * math.pi)) / (2 * math.log(theta))

    first = column_of(scaling.get("beta_fast") or 32)
    last = column_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_size - 1)
    width = last - first or 0.001
    keep = 1 - ((torch.arange(head_size // 2).float() - first) / width).clamp(0, 1)
    return inverse * keep + inverse / factor * (1 - keep), _yarn_factor(scaling, factor)


def _yarn_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """What the table is multiplied by, so that attention keeps its sharpness."""

    def sharpness(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    weight, weight_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if weight and weight_all:
        return sharpness(factor, weight) / sharpness(factor, weight_all)
    return sharpness(factor)
