"""Split, norm and rotation of a fused projection in Triton, forward and backward.

A program holds one key head of one token: its query heads, key and value, as the two halves that
the rotation pairs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.device import num_programs

_PROGRAMS_PER_SM = 12  # of the backward pass: each sums its heads' norm gradients


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
    """As `rope.qkv_rope`."""
    shape = (num_key_heads, num_heads // num_key_heads, head_size)
    return _QkvRope.apply(qkv_TC, q_norm_H, k_norm_H, positions_T, cos, sin, shape, eps)


class _QkvRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_TC, q_norm_H, k_norm_H, positions_T, cos, sin, shape, eps):
        qkv_TC = qkv_TC.contiguous()
        key_heads, per_key, size = shape
        tokens = len(qkv_TC)
        q = qkv_TC.new_empty(tokens, key_heads * per_key, size)
        k, v = (qkv_TC.new_empty(tokens, key_heads, size) for _ in range(2))
        if tokens:
            _forward[(tokens * key_heads,)](
                qkv_TC, positions_T, cos, sin, q_norm_H, k_norm_H, q, k, v, eps,
                **_constants(shape, q_norm_H), num_warps=1,
            )  # fmt: skip
        ctx.save_for_backward(qkv_TC, q_norm_H, k_norm_H, positions_T, cos, sin)
        ctx.shape, ctx.eps = shape, eps
        return q, k, v

    @staticmethod
    def backward(ctx, grad_q, grad_k, grad_v):
        qkv_TC, q_norm_H, k_norm_H, positions_T, cos, sin = ctx.saved_tensors
        result = torch.empty_like(qkv_TC)
        items = len(qkv_TC) * ctx.shape[0]
        programs = max(1, min(items, num_programs(qkv_TC.device, _PROGRAMS_PER_SM)))
        partial = torch.zeros(
            (programs, 2, ctx.shape[2]), dtype=torch.float32, device=qkv_TC.device
        )
        if items:
            _backward[(programs,)](
                grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous(), qkv_TC, positions_T,
                cos, sin, q_norm_H, k_norm_H, result, partial, items, ctx.eps,
                **_constants(ctx.shape, q_norm_H), num_warps=1,
            )  # fmt: skip
        grad_q_norm = grad_k_norm = None
        if q_norm_H is not None:
            grad_q_norm, grad_k_norm = partial.sum(0).to(q_norm_H.dtype)
        return result, grad_q_norm, grad_k_norm, None, None, None, None, None


def _constants(shape: tuple[int, int, int], q_norm_H: Tensor | None) -> dict[str, int | bool]:
    key_heads, per_key, size = shape
    return {
        "KEY_HEADS": key_heads,
        "PER_KEY": per_key,
        "HALF": size // 2,
        "HEADS_PAD": triton.next_power_of_2(per_key + 2),
        "HALF_PAD": triton.next_power_of_2(size // 2),
        "HAS_NORM": q_norm_H is not None,
    }


@triton.jit
def _angles(cos_ptr, sin_ptr, positions_ptr, token, column, inside, HALF: tl.constexpr):
    position = tl.load(positions_ptr + token).to(tl.int64)
    cos = tl.load(cos_ptr + position * HALF + column, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + position * HALF + column, mask=inside, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _norm_weights(
    q_norm_ptr, k_norm_ptr, is_key, column, inside, HALF: tl.constexpr, dtype: tl.constexpr
):
    """The weights of the two halves of each head, rounded to the dtype of the heads."""
    q_left = tl.load(q_norm_ptr + column, mask=inside, other=0.0)[None, :]
    q_right = tl.load(q_norm_ptr + HALF + column, mask=inside, other=0.0)[None, :]
    k_left = tl.load(k_norm_ptr + column, mask=inside, other=0.0)[None, :]
    k_right = tl.load(k_norm_ptr + HALF + column, mask=inside, other=0.0)[None, :]
    left = tl.where(is_key, k_left, q_left).to(dtype).to(tl.float32)
    right = tl.where(is_key, k_right, q_right).to(dtype).to(tl.float32)
    return left, right


@triton.jit
def _forward(
    qkv_ptr, positions_ptr, cos_ptr, sin_ptr, q_norm_ptr, k_norm_ptr, q_ptr, k_ptr, v_ptr, eps,
    KEY_HEADS: tl.constexpr, PER_KEY: tl.constexpr, HALF: tl.constexpr, HEADS_PAD: tl.constexpr,
    HALF_PAD: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)  # token * KEY_HEADS + key head
    head = tl.arange(0, HEADS_PAD)[:, None]
    column = tl.arange(0, HALF_PAD)
    inside = column < HALF
    mask = (head < PER_KEY + 2) & inside[None, :]
    source = qkv_ptr + (item * (PER_KEY + 2) + head) * (2 * HALF) + column[None, :]
    left_in = tl.load(source, mask=mask, other=0.0)
    right_in = tl.load(source + HALF, mask=mask, other=0.0)
    dtype = left_in.dtype
    left, right = left_in.to(tl.float32), right_in.to(tl.float32)
    is_key = head == PER_KEY
    if HAS_NORM:
        mean = tl.sum(left * left + right * right, axis=1) / (2 * HALF)
        inverse = tl.rsqrt(mean + eps)[:, None]
        weight_left, weight_right = _norm_weights(
            q_norm_ptr, k_norm_ptr, is_key, column, inside, HALF, dtype
        )
        left = ((left * inverse).to(dtype).to(tl.float32) * weight_left).to(dtype).to(tl.float32)
        right = ((right * inverse).to(dtype).to(tl.float32) * weight_right).to(dtype)
        right = right.to(tl.float32)
    cos, sin = _angles(cos_ptr, sin_ptr, positions_ptr, item // KEY_HEADS, column, inside, HALF)
    turned_left = (left * cos - right * sin).to(dtype)
    turned_right = (right * cos + left * sin).to(dtype)
    columns = column[None, :]
    q = q_ptr + (item * PER_KEY + head) * (2 * HALF) + columns
    is_query = mask & (head < PER_KEY)
    tl.store(q, turned_left, mask=is_query)
    tl.store(q + HALF, turned_right, mask=is_query)
    k = k_ptr + item * (2 * HALF) + head * 0 + columns
    tl.store(k, turned_left, mask=mask & is_key)
    tl.store(k + HALF, turned_right, mask=mask & is_key)
    v = v_ptr + item * (2 * HALF) + head * 0 + columns
    is_value = mask & (head == PER_KEY + 1)
    tl.store(v, left_in, mask=is_value)
    tl.store(v + HALF, right_in, mask=is_value)


@triton.jit
def _load_grads(
    q_ptr, k_ptr, v_ptr, item, head, columns, mask, PER_KEY: tl.constexpr, SIZE: tl.constexpr
):
    """The gradients of one half of every head, and of it only where it was rotated."""
    q = q_ptr + (item * PER_KEY + head) * SIZE + columns
    grad = tl.load(q, mask=mask & (head < PER_KEY), other=0.0).to(tl.float32)
    k = k_ptr + item * SIZE + head * 0 + columns
    grad += tl.load(k, mask=mask & (head == PER_KEY), other=0.0).to(tl.float32)
    v = v_ptr + item * SIZE + head * 0 + columns
    return grad, tl.load(v, mask=mask & (head == PER_KEY + 1), other=0.0)


@triton.jit
def _backward(
    grad_q_ptr, grad_k_ptr, grad_v_ptr, qkv_ptr, positions_ptr, cos_ptr, sin_ptr, q_norm_ptr,
    k_norm_ptr, result_ptr, partial_ptr, items, eps,
    KEY_HEADS: tl.constexpr, PER_KEY: tl.constexpr, HALF: tl.constexpr, HEADS_PAD: tl.constexpr,
    HALF_PAD: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    SIZE: tl.constexpr = 2 * HALF
    head = tl.arange(0, HEADS_PAD)[:, None]
    column = tl.arange(0, HALF_PAD)
    columns = column[None, :]
    inside = column < HALF
    mask = (head < PER_KEY + 2) & inside[None, :]
    is_key, is_value = head == PER_KEY, head == PER_KEY + 1
    dtype = result_ptr.dtype.element_ty
    sums_left = tl.zeros((HEADS_PAD, HALF_PAD), dtype=tl.float32)
    sums_right = tl.zeros((HEADS_PAD, HALF_PAD), dtype=tl.float32)
    for start in range(tl.program_id(0), items, tl.num_programs(0)):
        item = tl.cast(start, tl.int64)
        turned_left, value_left = _load_grads(
            grad_q_ptr, grad_k_ptr, grad_v_ptr, item, head, columns, mask, PER_KEY, SIZE
        )
        turned_right, value_right = _load_grads(
            grad_q_ptr, grad_k_ptr, grad_v_ptr, item, head, columns + HALF, mask, PER_KEY, SIZE
        )
        cos, sin = _angles(cos_ptr, sin_ptr, positions_ptr, item // KEY_HEADS, column, inside, HALF)
        # the rotation back
        left = turned_left * cos + turned_right * sin
        right = turned_right * cos - turned_left * sin
        place = (item * (PER_KEY + 2) + head) * SIZE + columns
        if HAS_NORM:
            x_left = tl.load(qkv_ptr + place, mask=mask, other=0.0).to(tl.float32)
            x_right = tl.load(qkv_ptr + place + HALF, mask=mask, other=0.0).to(tl.float32)
            mean = tl.sum(x_left * x_left + x_right * x_right, axis=1) / SIZE
            inverse = tl.rsqrt(mean + eps)[:, None]
            normal_left, normal_right = x_left * inverse, x_right * inverse
            sums_left += left * normal_left
            sums_right += right * normal_right
            weight_left, weight_right = _norm_weights(
                q_norm_ptr, k_norm_ptr, is_key, column, inside, HALF, dtype
            )
            left, right = left * weight_left, right * weight_right
            along = tl.sum(left * normal_left + right * normal_right, axis=1)[:, None] / SIZE
            left = (left - normal_left * along) * inverse
            right = (right - normal_right * along) * inverse
        left = tl.where(is_value, value_left.to(tl.float32), left).to(dtype)
        right = tl.where(is_value, value_right.to(tl.float32), right).to(dtype)
        tl.store(result_ptr + place, left, mask=mask)
        tl.store(result_ptr + place + HALF, right, mask=mask)
    if HAS_NORM:
        _store_norm_grads(partial_ptr, sums_left, head, column, inside, 0, PER_KEY, SIZE)
        _store_norm_grads(partial_ptr, sums_right, head, column, inside, HALF, PER_KEY, SIZE)


@triton.jit
def _store_norm_grads(
    partial_ptr, sums, head, column, inside, shift, PER_KEY: tl.constexpr, SIZE: tl.constexpr
):
    target = partial_ptr + tl.program_id(0).to(tl.int64) * (2 * SIZE) + shift + column
    tl.store(target, tl.sum(tl.where(head < PER_KEY, sums, 0.0), axis=0), mask=inside)
    tl.store(target + SIZE, tl.sum(tl.where(head == PER_KEY, sums, 0.0), axis=0), mask=inside)
