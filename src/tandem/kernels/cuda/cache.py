"""Writing the paged cache in Triton."""

import triton
import triton.language as tl
from torch import Tensor


def write_cache(
    k_TKH: Tensor, v_TKH: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor
) -> None:
    """As `paged.write_cache`."""
    if len(slots_T) == 0:
        return
    size = k_TKH[0].numel()
    _write[(len(slots_T),)](
        k_TKH.contiguous(), v_TKH.contiguous(), k_cache, v_cache, slots_T, size,
        BLOCK=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip


@triton.jit
def _write(k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, size, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = (column < size) & (slot >= 0)
    dtype = k_cache_ptr.dtype.element_ty
    k = tl.load(k_ptr + token * size + column, mask=mask)
    tl.store(k_cache_ptr + slot * size + column, k.to(dtype), mask=mask)
    v = tl.load(v_ptr + token * size + column, mask=mask)
    tl.store(v_cache_ptr + slot * size + column, v.to(dtype), mask=mask)
