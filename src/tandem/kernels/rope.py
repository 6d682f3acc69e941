"""Rotary position embedding: its table, and the split of a fused projection with it applied."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tandem.errors import CheckpointError
from tandem.kernels.device import is_fused
from tandem.kernels.norm import norm_gradient

_CHUNK_VALUES = 1 << 18  # rows are worked on in pieces that stay in the cache


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
    if is_fused(qkv_TC):
        from tandem.kernels.cuda import rope as fused

        heads = (num_heads, num_key_heads, head_size)
        return fused.qkv_rope(qkv_TC, positions_T, cos, sin, *heads, q_norm_H, k_norm_H, eps)
    shape = (num_key_heads, num_heads // num_key_heads + 2, head_size)
    angles = (cos[positions_T][:, None, None], sin[positions_T][:, None, None])
    inputs = (qkv_TC, q_norm_H, k_norm_H)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _QkvRope.apply(*inputs, *angles, shape, eps)
    return _split(*inputs, angles, shape, eps)[0]


class _QkvRope(torch.autograd.Function):
    """The rotation is undone by turning back, so only the projection is saved."""

    @staticmethod
    def forward(ctx, qkv_TC, q_norm_H, k_norm_H, cos, sin, shape, eps):
        results, inverse = _split(qkv_TC, q_norm_H, k_norm_H, (cos, sin), shape, eps)
        ctx.save_for_backward(qkv_TC, q_norm_H, k_norm_H, cos, sin, inverse)
        ctx.shape = shape
        return results

    @staticmethod
    def backward(ctx, grad_q, grad_k, grad_v):
        qkv_TC, q_norm_H, k_norm_H, cos, sin, inverse = ctx.saved_tensors
        heads = qkv_TC.unflatten(1, ctx.shape)
        result = torch.empty_like(heads)
        result[:, :, -1] = grad_v
        grad = torch.cat([grad_q.view_as(heads[:, :, :-2]), grad_k[:, :, None]], dim=2)
        grad = _turn(grad.float(), cos, -sin)
        grad_q_norm = grad_k_norm = None
        if q_norm_H is not None:
            normal = heads[:, :, :-1].float() * inverse
            weight_grad = (grad * normal).sum((0, 1))
            grad_q_norm = weight_grad[:-1].sum(0).to(q_norm_H.dtype)
            grad_k_norm = weight_grad[-1].to(k_norm_H.dtype)
            grad = norm_gradient(grad * _norm_weight(q_norm_H, k_norm_H, heads), normal, inverse)
        result[:, :, :-1] = grad
        return result.flatten(1), grad_q_norm, grad_k_norm, None, None, None, None


def _split(qkv_TC, q_norm_H, k_norm_H, angles, shape, eps):
    """(queries, keys, values), and the inverse root mean squares if heads are normed."""
    heads = qkv_TC.unflatten(1, shape)
    q = heads.new_empty(len(heads), shape[0], shape[1] - 2, shape[2])
    k, v = heads.new_empty(len(heads), shape[0], shape[2]), heads[:, :, -1].contiguous()
    weight = inverse = None
    if q_norm_H is not None:
        weight = _norm_weight(q_norm_H, k_norm_H, heads).to(qkv_TC.dtype)
        inverse = torch.empty(*q.shape[:2], shape[1] - 1, 1, device=q.device)
    step = max(1, _CHUNK_VALUES // qkv_TC.shape[1])
    for start in range(0, len(heads), step):
        rows = slice(start, start + step)
        turning = heads[rows, :, :-1].float()  # [t, K, N/K + 1, H]
        if weight is not None and inverse is not None:
            inverse[rows] = (turning.square().mean(-1, keepdim=True) + eps).rsqrt_()
            turning = (turning * inverse[rows]).to(qkv_TC.dtype).mul_(weight).float()
        turned = _turn(turning, *(x[rows] for x in angles))
        q[rows], k[rows] = turned[:, :, :-1], turned[:, :, -1]
    return (q.flatten(1, 2), k, v), inverse


def _norm_weight(q_norm_H: Tensor, k_norm_H: Tensor, heads: Tensor) -> Tensor:
    """The weights of a key head's query heads and key, `[N/K + 1, H]` fp32."""
    return torch.stack([q_norm_H] * (heads.shape[2] - 2) + [k_norm_H]).float()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    left, right = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
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
