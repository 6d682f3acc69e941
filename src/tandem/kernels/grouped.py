"""Decode attention for rows whose sequences begin with the same prompt."""

import torch
from torch import Tensor

from tandem.kernels.device import ORDERED_HEADS, is_fused
from tandem.kernels.paged import by_padded_length, gather_blocks, padded_length

_ROWS_TOGETHER = 4


def grouped_paged_attention(
    q_RNH: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    prefix_table_GB: Tensor,
    prefix_lengths_G: Tensor,
    group_bounds_G: Tensor,
    suffix_table_RB: Tensor,
    suffix_lengths_R: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attended values `[R, N, H]` of one query a row over its group's prefix and its own suffix.

    Rows are sorted by group: group g has rows `group_bounds_G[g] : group_bounds_G[g + 1]` (int32,
    G + 1 entries) that share the first `prefix_lengths_G[g]` tokens (0 for none); the suffix holds
    the row's own token. A prefix is read once for all rows of its group; the two partial results
    are merged by their log-sum-exp. A row with neither prefix nor suffix gives zeros. On CUDA a
    prefix has a multiple of 64 tokens, and a row's bits are those of `paged_attention` over both.
    """
    if is_fused(q_RNH) and q_RNH.shape[-1] in ORDERED_HEADS:
        from tandem.kernels.cuda import ordered_decode

        groups = (prefix_table_GB, prefix_lengths_G, group_bounds_G)
        rows = (suffix_table_RB, suffix_lengths_R)
        return ordered_decode.grouped_paged_attention(
            q_RNH, k_cache, v_cache, *groups, *rows, scale
        )
    scale = q_RNH.shape[-1] ** -0.5 if scale is None else scale
    shape = (k_cache.shape[2], -1)
    q = (q_RNH * scale).unflatten(1, shape)  # [R, K, N/K, H]
    prefix, prefix_lse = _prefix(
        q, k_cache, v_cache, prefix_table_GB, prefix_lengths_G, group_bounds_G
    )
    suffix, suffix_lse = _suffix(q, k_cache, v_cache, suffix_table_RB, suffix_lengths_R)
    return merge(prefix, prefix_lse, suffix, suffix_lse).to(q_RNH.dtype).flatten(1, 2)


def merge(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """One attention result from two over disjoint keys, `[..., H]` each with its `[...]` lse.

    An lse of -inf says that there were no keys. Source: Rabe and Staats, 2021.
    """
    top = torch.maximum(first_lse, second_lse).clamp_min(torch.finfo(torch.float32).min)
    first_mass, second_mass = (first_lse - top).exp(), (second_lse - top).exp()
    total = (first_mass + second_mass).clamp_min(torch.finfo(torch.float32).tiny)
    first_share, second_share = first_mass / total, second_mass / total
    return first * first_share[..., None] + second * second_share[..., None]


def _prefix(q, k_cache, v_cache, table_GB, lengths_G, bounds_G) -> tuple[Tensor, Tensor]:
    """Results over each group's prefix and their lse; groups of one size and padded length meet
    in one call, the queries of a group as the rows of one product."""
    out, lse = _nothing(q)
    bounds, lengths, block = bounds_G.tolist(), lengths_G.tolist(), k_cache.shape[1]
    calls: dict[tuple[int, int], list[int]] = {}
    for group, length in enumerate(lengths):
        size = bounds[group + 1] - bounds[group]
        if size and length:
            # MKL gives other bits to the last rows of a product when fewer than four are left
            size += -size % _ROWS_TOGETHER
            calls.setdefault((size, padded_length(length, block)), []).append(group)
    for (size, length), groups in calls.items():
        index = torch.tensor(groups, device=q.device)
        last = bounds_G[index + 1].long()[:, None] - 1
        rows = bounds_G[index].long()[:, None] + torch.arange(size, device=q.device)
        rows = rows.minimum(last).flatten()  # filled up with the group's last row
        k, v = (gather_blocks(cache, table_GB[index], length) for cache in (k_cache, v_cache))
        queries = q[rows].unflatten(0, (-1, size)).transpose(1, 2)  # [G, K, rows, N/K, H]
        part, part_lse = _attend(queries.flatten(2, 3), k, v, lengths_G[index])
        out[rows] = part.unflatten(2, (size, -1)).transpose(1, 2).flatten(0, 1)
        lse[rows] = part_lse.unflatten(2, (size, -1)).transpose(1, 2).flatten(0, 1)
    return out, lse


def _suffix(q, k_cache, v_cache, table_RB, lengths_R) -> tuple[Tensor, Tensor]:
    out, lse = _nothing(q)
    for length, rows in by_padded_length(lengths_R.tolist(), k_cache):
        index = torch.tensor(rows, device=q.device)
        k, v = (gather_blocks(cache, table_RB[index], length) for cache in (k_cache, v_cache))
        out[index], lse[index] = _attend(q[index], k, v, lengths_R[index])
    return out, lse


def _nothing(q: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.full(q.shape[:-1], float("-inf"), dtype=torch.float32, device=q.device)
    return torch.zeros_like(q, dtype=torch.float32), lse


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths_G: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of scaled `[G, K, Q, H]` to the first of `[G, K, L, H]`, fp32, and its lse."""
    is_hidden = torch.arange(k.shape[2], device=q.device) >= lengths_G[:, None]
    is_hidden = is_hidden[:, None, None]
    if q.device.type == "cpu":
        mask = torch.zeros(is_hidden.shape, dtype=q.dtype).masked_fill_(is_hidden, float("-inf"))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=1.0
        )
        return out.float(), lse
    scores = torch.matmul(q, k.transpose(-1, -2)).float().masked_fill_(is_hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    return torch.matmul((scores - lse[..., None]).exp().to(v.dtype), v).float(), lse
