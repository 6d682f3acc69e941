"""Matrix products in Triton whose bits are a function of the row alone.

Each value is summed over the inner axis in one order, in one accumulator, by the same instruction:
tiles differ with the number of rows, never in how they walk the inner axis, and never split it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def invariant_linear(
    x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """As `linear.invariant_linear`."""
    return _Linear.apply(x_TD, weight_OD, bias_O, out_dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, weight_OD, bias_O, out_dtype):
        ctx.save_for_backward(x_TD, weight_OD)
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        return product(x_TD, weight_OD, bias_O, out_dtype)

    @staticmethod
    def backward(ctx, grad):
        x_TD, weight_OD = ctx.saved_tensors
        grad = grad.to(x_TD.dtype)
        rows = grad.flatten(0, -2)
        grad_x = grad @ weight_OD if ctx.needs_input_grad[0] else None
        grad_weight = rows.t() @ x_TD.flatten(0, -2) if ctx.needs_input_grad[1] else None
        grad_bias = rows.float().sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None


def product(
    x_TD: Tensor,
    weight_OD: Tensor,
    bias_O: Tensor | None,
    out_dtype: torch.dtype,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """`x_TD @ weight_OD.T + bias_O`, without autograd; `tile` as `_tile` gives it."""
    x, weight_OD = _with_rows(x_TD.reshape(-1, x_TD.shape[-1])), _with_rows(weight_OD)
    (rows, inner), outputs = x.shape, len(weight_OD)
    y = x.new_empty(rows, outputs, dtype=out_dtype)
    tile = tile or _tile(rows, x.dtype)
    if y.numel():
        grid = (triton.cdiv(rows, tile["TILE_T"]) * triton.cdiv(outputs, tile["TILE_O"]),)
        _product_tile[grid](
            x, weight_OD, bias_O, y, rows, outputs, inner, x.stride(0), weight_OD.stride(0),
            HAS_BIAS=bias_O is not None, IS_EVEN=inner % tile["TILE_D"] == 0,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32", **tile,
        )  # fmt: skip
    return y.view(*x_TD.shape[:-1], outputs)


def _with_rows(matrix: Tensor) -> Tensor:
    """The matrix with rows that lie in one piece."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def few_rows_product(
    x_TD: Tensor, weight_OD: Tensor, tile: tuple[int, int, int] = (64, 128, 6)
) -> Tensor:
    """`x_TD @ weight_OD.T` for at most 64 rows; `tile`: outputs, inner axis, stages.

    The weights are the rows of the tensor core's product and ours its columns, so 16 rows make no
    work for 64, and many tiles of weights are on their way at once.
    """
    (rows, inner), outputs = x_TD.shape, len(weight_OD)
    tile_o, tile_d, stages = tile
    assert not (outputs % tile_o or inner % tile_d), "whole tiles of weights are read"
    x_TD, weight_OD = _with_rows(x_TD), _with_rows(weight_OD)
    y = x_TD.new_empty(rows, outputs)
    _few_rows_tile[(outputs // tile_o,)](
        x_TD, weight_OD, y, rows, outputs, x_TD.stride(0), weight_OD.stride(0), INNER=inner,
        TILE_T=max(16, triton.next_power_of_2(rows)), TILE_O=tile_o, TILE_D=tile_d,
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    return y


@triton.jit
def _few_rows_tile(
    x_ptr, weight_ptr, y_ptr, rows, outputs, x_stride, weight_stride, INNER: tl.constexpr,
    TILE_T: tl.constexpr, TILE_O: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * TILE_O + tl.arange(0, TILE_O)
    t = tl.arange(0, TILE_T)
    d = tl.arange(0, TILE_D)
    weight = weight_ptr + o.to(tl.int64)[:, None] * weight_stride + d[None, :]
    x = x_ptr + t[None, :] * x_stride + d[:, None]
    is_row = (t < rows)[None, :]
    total = tl.zeros((TILE_O, TILE_T), dtype=tl.float32)
    for _ in range(0, INNER, TILE_D):
        total = tl.dot(tl.load(weight), tl.load(x, mask=is_row, other=0.0), total)
        weight += TILE_D
        x += TILE_D
    y = y_ptr + t[None, :] * outputs + o[:, None]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=is_row)


def _tile(rows: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes for a number of rows. At least 64 rows a tile, so that every one is wgmma's."""
    if dtype == torch.float32:
        sizes, warps, stages = (64, 64, 32), 4, 3
    elif rows <= 64:
        sizes, warps, stages = (64, 64, 128), 4, 4
    elif rows <= 512:
        sizes, warps, stages = (128, 64, 64), 4, 4
    else:
        sizes, warps, stages = (128, 256, 64), 8, 3
    names = ("TILE_T", "TILE_O", "TILE_D")
    return {**dict(zip(names, sizes, strict=True)), "num_warps": warps, "num_stages": stages}


@triton.jit
def _product_tile(
    x_ptr, weight_ptr, bias_ptr, y_ptr, rows, outputs, inner, x_stride, weight_stride,
    TILE_T: tl.constexpr, TILE_O: tl.constexpr, TILE_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_EVEN: tl.constexpr, PRECISION: tl.constexpr, TOGETHER: tl.constexpr = 8,
):  # fmt: skip
    # tiles of some rows before those of the next, so that their inputs are found in the L2 cache
    num_t, num_o = tl.cdiv(rows, TILE_T), tl.cdiv(outputs, TILE_O)
    group = tl.program_id(0) // (TOGETHER * num_o)
    group_size = tl.minimum(num_t - group * TOGETHER, TOGETHER)
    inside_group = tl.program_id(0) % (TOGETHER * num_o)
    t = (group * TOGETHER + inside_group % group_size) * TILE_T + tl.arange(0, TILE_T)
    o = (inside_group // group_size) * TILE_O + tl.arange(0, TILE_O)
    d = tl.arange(0, TILE_D)
    # past the end the first rows are read again: cheaper than masks, and never stored
    x = x_ptr + (t % rows).to(tl.int64)[:, None] * x_stride + d[None, :]
    weight = weight_ptr + (o % outputs).to(tl.int64)[None, :] * weight_stride + d[:, None]
    total = tl.zeros((TILE_T, TILE_O), dtype=tl.float32)
    for start in range(0, inner, TILE_D):
        if IS_EVEN:
            total = tl.dot(tl.load(x), tl.load(weight), total, input_precision=PRECISION)
        else:
            x_tile = tl.load(x, mask=(start + d)[None, :] < inner, other=0.0)
            weight_tile = tl.load(weight, mask=(start + d)[:, None] < inner, other=0.0)
            total = tl.dot(x_tile, weight_tile, total, input_precision=PRECISION)
        x += TILE_D
        weight += TILE_D
    if HAS_BIAS:
        total += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    y = y_ptr + t.to(tl.int64)[:, None] * outputs + o[None, :]
    mask = (t < rows)[:, None] & (o < outputs)[None, :]
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=mask)
