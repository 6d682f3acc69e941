"""Packed attention with gradients: forward in one order (`ordered`), backward by FlashAttention.

FlashAttention 4 where it is installed, else the FlashAttention 2 that torch brings along: both
take the output and the log-sum-exps that the forward pass left.
"""

import torch
from torch import Tensor

from tandem.kernels.cuda import ordered
from tandem.kernels.device import FLASH_4_HEADS, has_flash_attention_4


def packed_attention(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    bounds_S: Tensor,
    longest: int,
    keys: tuple[Tensor, int],
    scale: float | None,
) -> Tensor:
    """As `attention.packed_attention`; where torch's algorithms are to be deterministic, the
    backward pass gives the same bits every time."""
    q, k, v = q_TNH.contiguous(), k_TKH.contiguous(), v_TKH.contiguous()
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return _Packed.apply(q, k, v, bounds_S, longest, *keys, scale)
    return ordered.attend(q, k, v, bounds_S, longest, scale, keys=keys)[0]


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bounds_S, longest, key_bounds_S, longest_key, scale):
        keys = (key_bounds_S, longest_key)
        out, lse = ordered.attend(q, k, v, bounds_S, longest, scale, keys=keys, want_lse=True)
        ctx.save_for_backward(q, k, v, out, lse, bounds_S, key_bounds_S)
        ctx.how = (longest, longest_key, q.shape[-1] ** -0.5 if scale is None else scale)
        return out

    @staticmethod
    def backward(ctx, grad):
        gradients = _by_4 if _has_4(grad) else _by_2
        return *gradients(grad.contiguous(), *ctx.saved_tensors, *ctx.how), *[None] * 5


def _has_4(grad: Tensor) -> bool:
    return has_flash_attention_4() and grad.shape[-1] in FLASH_4_HEADS


def _by_4(grad, q, k, v, out, lse, bounds_S, key_bounds_S, longest, longest_key, scale):
    from flash_attn.cute.interface import _flash_attn_bwd

    return _flash_attn_bwd(
        q,
        k,
        v,
        out,
        grad,
        lse,
        scale,
        causal=True,
        cu_seqlens_q=bounds_S,
        cu_seqlens_k=key_bounds_S,
        max_seqlen_q=longest,
        max_seqlen_k=longest_key,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _by_2(grad, q, k, v, out, lse, bounds_S, key_bounds_S, longest, longest_key, scale):
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of dropout
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, bounds_S, key_bounds_S, longest, longest_key, 0.0, True, unused,
        unused[:0], scale=scale,
    )  # fmt: skip
