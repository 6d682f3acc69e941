"""FlashAttention 4: packed training, prefill and decode over the paged cache with equal bits.

Where the wheel is absent, training falls back to torch's `varlen_attn` (see `attention.py`).
"""

import torch
from torch import Tensor


def packed_attention(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    bounds_S: Tensor,
    longest: int,
    keys: tuple[Tensor, int],
    scale: float | None,
) -> Tensor:
    """As `attention.packed_attention`; the backward pass gives the same bits every time."""
    from flash_attn.cute import flash_attn_varlen_func

    key_bounds_S, longest_key = keys
    return _first(
        flash_attn_varlen_func(
            q_TNH,
            k_TKH,
            v_TKH,
            cu_seqlens_q=bounds_S,
            cu_seqlens_k=key_bounds_S,
            max_seqlen_q=longest,
            max_seqlen_k=longest_key,
            softmax_scale=scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
    )


def paged_prefill_attention(
    q_TNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    bounds_R: Tensor,
    table_RB: Tensor,
    lengths_R: Tensor,
    longest_query: int,
    scale: float | None = None,
) -> Tensor:
    """As `paged.paged_prefill_attention`; one query a row makes it a decode."""
    from flash_attn.cute import flash_attn_varlen_func

    # a kernel is compiled for the strides it meets first, and those of an axis of size 1 are odd
    if len(table_RB) == 1:
        table_RB = torch.cat([table_RB, table_RB])
        bounds_R = torch.cat([bounds_R, bounds_R[-1:]])
        lengths_R = torch.cat([lengths_R, lengths_R.new_zeros(1)])
    if table_RB.shape[1] == 1:
        table_RB = torch.cat([table_RB, table_RB], dim=1)
    return _first(
        flash_attn_varlen_func(
            q_TNH,
            k_cache,
            v_cache,
            cu_seqlens_q=bounds_R,
            seqused_k=lengths_R,
            page_table=table_RB,
            max_seqlen_q=longest_query,
            softmax_scale=scale,
            causal=True,
        )
    )


def _first(result: Tensor | tuple) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
