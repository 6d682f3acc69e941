"""Causal attention over a packed row of sequences."""

import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tandem.kernels.device import ORDERED_HEADS, has_triton, is_half


class Keys(NamedTuple):
    """How the keys of each sequence lie, where there are more of them than queries."""

    bounds_S: Tensor  # int32, S + 1 cumulative lengths
    longest: int


def packed_attention(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    bounds_S: Tensor,
    longest: int,
    scale: float | None = None,
    keys: Keys | None = None,
) -> Tensor:
    """Attended values `[T, N, H]`, causal within each sequence, with autograd.

    `bounds_S` holds S + 1 cumulative lengths (int32), `longest` the longest length, `scale` is
    1 / sqrt(H) unless given. Query head n reads key head n // (N / K). The bits of a sequence do
    not depend on the others of its row; on CUDA, in bf16 or fp16 and for `ORDERED_HEADS`, they are
    those that `paged` gives for the same tokens. With `keys` the queries of a sequence are the last
    ones of its keys, whose cumulative lengths these are.
    """
    if not (q_TNH.is_cuda and is_half(q_TNH)):
        if keys is not None:
            return _suffixes(q_TNH, k_TKH, v_TKH, bounds_S, keys.bounds_S, scale)
        return _by_length(q_TNH, k_TKH, v_TKH, bounds_S, scale)
    keys = Keys(bounds_S, longest) if keys is None else keys
    if has_triton() and q_TNH.shape[-1] in ORDERED_HEADS:
        from tandem.kernels.cuda import flash

        return flash.packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, longest, keys, scale)
    return _varlen(q_TNH, k_TKH, v_TKH, bounds_S, longest, keys, scale)


def _varlen(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    bounds_S: Tensor,
    longest: int,
    keys: Keys,
    scale: float | None,
) -> Tensor:
    """FlashAttention 2, which torch brings along, for what our kernel does not serve."""
    from torch.nn.attention.varlen import varlen_attn

    how: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}  # -1, 0: causal
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.11 never asks
        how["enable_gqa"] = True
    attended = varlen_attn(
        q_TNH, k_TKH, v_TKH, bounds_S, keys.bounds_S, longest, keys.longest, **how
    )
    return attended[0] if isinstance(attended, tuple) else attended


def _by_length(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, bounds_S: Tensor, scale) -> Tensor:
    """The reference: one call of torch's attention for all sequences of a length.

    A call costs tens of microseconds whatever its size, and a row may hold hundreds of short
    sequences. Never padded, so that a sequence gives the same bits in every row it is packed into.
    """
    calls, order_T, back_T = _plan(tuple(bounds_S.tolist()))
    q, k, v = (_reorder(x, order_T) for x in (q_TNH, k_TKH, v_TKH))
    sizes = [count * length for count, length in calls]
    parts = [
        _causal(piece, call, scale)
        for call, *piece in zip(calls, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    ]
    return _reorder(torch.cat(parts) if len(parts) > 1 else parts[0], back_T)


def _reorder(x: Tensor, index_T: Tensor | None) -> Tensor:
    return x if index_T is None else x.index_select(0, index_T.to(x.device))


def _causal(piece: Sequence[Tensor], shape: tuple[int, int], scale: float | None) -> Tensor:
    """Causal attention of queries, keys and values of (sequences, length), laid end to end."""
    q, k, v = (x.unflatten(0, shape) for x in piece)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2).flatten(0, 1)


def _suffixes(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, query_bounds_S: Tensor, key_bounds_S: Tensor, scale
) -> Tensor:
    """The reference where queries are the last ones of their keys: a call for each sequence."""
    parts = []
    spans = zip(
        itertools.pairwise(query_bounds_S.tolist()),
        itertools.pairwise(key_bounds_S.tolist()),
        strict=True,
    )
    for (first, last), (first_key, last_key) in spans:
        num_queries, num_keys = last - first, last_key - first_key
        is_seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_TNH.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            q_TNH[first:last].transpose(0, 1)[None],
            k_TKH[first_key:last_key].transpose(0, 1)[None],
            v_TKH[first_key:last_key].transpose(0, 1)[None],
            attn_mask=is_seen.tril(num_keys - num_queries),
            scale=scale,
            enable_gqa=q_TNH.shape[1] != k_TKH.shape[1],
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@functools.lru_cache(maxsize=64)
def _plan(
    bounds: tuple[int, ...],
) -> tuple[list[tuple[int, int]], Tensor | None, Tensor | None]:
    """(sequences, length) of each call, the order that sorts tokens by length, and the way back.

    Cached because every layer of a forward pass asks with the same bounds.
    """
    spans_of: dict[int, list[tuple[int, int]]] = {}
    for start, end in itertools.pairwise(bounds):
        if end > start:
            spans_of.setdefault(end - start, []).append((start, end))
    calls = [(len(spans), length) for length, spans in spans_of.items()]
    spans = [span for group in spans_of.values() for span in group]
    if spans == sorted(spans):
        return calls, None, None
    order_T = torch.cat([torch.arange(start, end) for start, end in spans])
    return calls, order_T, order_T.argsort()
