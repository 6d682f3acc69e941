"""The paged cache of one layer: writing it, and attention that reads it.

A cache is two tensors `[B, block, K, H]`. A sequence owns a row of a block table; its token t lies
in block `table[t // block]` at `t % block`. Table entries past a sequence's length must name some
block, and a cache must hold finite numbers everywhere (allocate it with zeros): what lies there is
read and given weight 0.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tandem.kernels.device import ORDERED_HEADS, is_fused, is_half

_CALL_VALUES = 1 << 19  # keys gathered for one call: measured best on 2 MB


def write_cache(
    k_TKH: Tensor, v_TKH: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor
) -> None:
    """Writes keys and values, in place, to slots `block_id * block + offset` (int64).

    A negative slot is not written. Slots must differ from each other.
    """
    if is_fused(k_TKH):
        from tandem.kernels.cuda import cache

        cache.write_cache(k_TKH, v_TKH, k_cache, v_cache, slots_T)
        return
    if bool((slots_T < 0).any()):
        is_real_T = slots_T >= 0
        k_TKH, v_TKH, slots_T = k_TKH[is_real_T], v_TKH[is_real_T], slots_T[is_real_T]
    k_cache.flatten(0, 1).index_copy_(0, slots_T, k_TKH.to(k_cache.dtype))
    v_cache.flatten(0, 1).index_copy_(0, slots_T, v_TKH.to(v_cache.dtype))


def paged_attention(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table_RB: Tensor,
    lengths_R: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attended values `[R, N, H]` of one query a row over the row's first `lengths_R` tokens.

    A row of length 0 gives zeros. The bits of a row depend on the row alone.
    """
    if is_fused(q_RNH) and q_RNH.shape[-1] in ORDERED_HEADS:
        from tandem.kernels.cuda import ordered_decode

        return ordered_decode.paged_attention(q_RNH, k_cache, v_cache, table_RB, lengths_R, scale)
    parts, places = [], []
    for length, rows in by_padded_length(lengths_R.tolist(), k_cache):
        index = torch.tensor(rows, device=q_RNH.device)
        table = table_RB.index_select(0, index)
        place = torch.arange(length, device=q_RNH.device)
        is_seen = place < lengths_R.index_select(0, index)[:, None]
        q = q_RNH.index_select(0, index).unflatten(1, (k_cache.shape[2], -1))
        k, v = (gather_blocks(cache, table, length) for cache in (k_cache, v_cache))
        parts.append(_attend(q, k, v, is_seen[:, None, None], scale).flatten(1, 2))
        places += rows
    if not parts:
        return torch.zeros_like(q_RNH)
    out_RNH = torch.zeros_like(q_RNH) if len(places) < len(q_RNH) else torch.empty_like(q_RNH)
    return out_RNH.index_copy_(0, torch.tensor(places, device=q_RNH.device), torch.cat(parts))


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
    """Attended values `[T, N, H]` of the last tokens of each row, causal.

    Row r has queries `bounds_R[r] : bounds_R[r + 1]`, which are the last of its `lengths_R[r]`
    tokens; all of those are in the cache already. `longest_query` is the most queries of a row.
    """
    if is_fused(q_TNH) and is_half(q_TNH) and q_TNH.shape[-1] in ORDERED_HEADS:
        from tandem.kernels.cuda import ordered

        out_TNH, _ = ordered.attend(
            q_TNH.contiguous(),
            k_cache,
            v_cache,
            bounds_R,
            longest_query,
            scale,
            table_SB=table_RB,
            lengths_S=lengths_R,
        )
        return out_TNH
    out_TNH = torch.empty_like(q_TNH)
    bounds = bounds_R.tolist()
    calls: dict[tuple[int, int], list[int]] = {}
    for row, length in enumerate(lengths_R.tolist()):
        calls.setdefault((bounds[row + 1] - bounds[row], length), []).append(row)
    for (num_queries, length), rows in calls.items():
        if num_queries == 0:
            continue
        index = torch.tensor(rows, device=q_TNH.device)
        place = torch.arange(length, device=q_TNH.device)
        tokens = (bounds_R[index].long()[:, None] + place[:num_queries]).flatten()
        table = table_RB[index]
        k, v = (gather_blocks(cache, table, length) for cache in (k_cache, v_cache))
        q = q_TNH.index_select(0, tokens).unflatten(0, (len(rows), num_queries))
        is_seen = place <= place[length - num_queries :, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2),
            k,
            v,
            attn_mask=None if num_queries == length else is_seen,
            is_causal=num_queries == length,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[1],
        )
        out_TNH.index_copy_(0, tokens, out.transpose(1, 2).flatten(0, 1))
    return out_TNH


def gather_blocks(cache: Tensor, table_RB: Tensor, length: int) -> Tensor:
    """The first `length` tokens of each row, `[R, K, length, H]`, a view of one gathered copy.

    A table too narrow for that repeats its last column.
    """
    columns = torch.arange(-(-length // cache.shape[1]), device=table_RB.device)
    columns = columns.clamp_(max=table_RB.shape[1] - 1)
    rows = cache.flatten(1).index_select(0, table_RB[:, columns].flatten())
    return rows.view(len(table_RB), -1, *cache.shape[2:])[:, :length].transpose(1, 2)


def by_padded_length(lengths: list[int], k_cache: Tensor) -> Iterator[tuple[int, list[int]]]:
    """Rows by padded length, which is a function of the row's own length; rows of length 0 not.

    So padding costs at most a quarter, and the bits of a row do not depend on its neighbours.
    Cut where a gathered copy would leave the cache.
    """
    _, block, *heads = k_cache.shape
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        if length:
            rows_of.setdefault(padded_length(length, block), []).append(row)
    for length, rows in rows_of.items():
        step = max(1, _CALL_VALUES // (length * math.prod(heads)))
        for start in range(0, len(rows), step):
            yield length, rows[start : start + step]


def padded_length(length: int, block: int) -> int:
    """The least multiple of a quarter of the length's power of two, and of a block, above it."""
    step = max(block, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


def _attend(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor, scale: float | None) -> Tensor:
    """Attention of `[R, K, N/K, H]` to `[R, K, L, H]`: the query heads of a key head are its rows,
    so that grouped heads read their keys once."""
    mask = torch.zeros(is_seen.shape, dtype=q.dtype, device=q.device).masked_fill_(
        ~is_seen, float("-inf")
    )
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
