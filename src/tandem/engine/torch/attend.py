"""Attention over the paged cache, in the forms that a step has; handed into the decoder."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from tandem.contracts import Attend
from tandem.kernels.grouped import grouped_paged_attention
from tandem.kernels.paged import paged_attention, paged_prefill_attention, write_cache


@dataclass(frozen=True, slots=True)
class PrefillAttend:
    """Many queries a sequence. All keys of the batch are written before one is read, so sequences
    of one batch may read blocks that another one computes in it."""

    cache: Tensor  # [L, 2, B, block, K, H]
    places_T: Tensor
    bounds_S: Tensor
    table_SB: Tensor
    lengths_S: Tensor
    longest: int

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        k_cache, v_cache = self.cache[layer]
        write_cache(k_TKH, v_TKH, k_cache, v_cache, self.places_T)
        return paged_prefill_attention(
            q_TNH, k_cache, v_cache, self.bounds_S, self.table_SB, self.lengths_S, self.longest
        )


@dataclass(frozen=True, slots=True)
class DecodeAttend:
    """One query a sequence."""

    cache: Tensor
    places_R: Tensor
    table_RB: Tensor
    lengths_R: Tensor

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        k_cache, v_cache = self.cache[layer]
        write_cache(k_TKH, v_TKH, k_cache, v_cache, self.places_R)
        return paged_attention(q_TNH, k_cache, v_cache, self.table_RB, self.lengths_R)


@dataclass(frozen=True, slots=True)
class GroupedDecodeAttend:
    """One query a sequence; what neighbouring sequences share is read once for all of them."""

    cache: Tensor
    places_R: Tensor
    prefix_table_GB: Tensor
    prefix_lengths_G: Tensor
    bounds_G: Tensor
    suffix_table_RB: Tensor
    suffix_lengths_R: Tensor

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        k_cache, v_cache = self.cache[layer]
        write_cache(k_TKH, v_TKH, k_cache, v_cache, self.places_R)
        return grouped_paged_attention(
            q_TNH,
            k_cache,
            v_cache,
            self.prefix_table_GB,
            self.prefix_lengths_G,
            self.bounds_G,
            self.suffix_table_RB,
            self.suffix_lengths_R,
        )


@dataclass(frozen=True, slots=True)
class PaddedAttend:
    """Another attention for the first `num_real` rows; the rest, put there to fill up, gets 0."""

    attend: Attend
    num_real: int

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        real = self.num_real
        out_TNH = self.attend(layer, q_TNH[:real], k_TKH[:real], v_TKH[:real])
        return functional.pad(out_TNH, (0, 0, 0, 0, 0, len(q_TNH) - real))
