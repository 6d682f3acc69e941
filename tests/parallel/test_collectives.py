"""Every collective gives what its name says, forward and backward, on two ranks of gloo."""

import pytest
import torch
import torch.distributed as dist

from tandem.parallel import ALONE, Sizes, make_mesh
from tandem.parallel import collectives as c

FUNCTIONS = ("copy_in", "sum_out", "gather_rows", "scatter_rows", "own_rows", "all_rows")
DTYPES = (torch.float32, torch.bfloat16)


def _x(rank: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(8, dtype=dtype).view(4, 2) + 10 * rank).requires_grad_()


def _grad(rank: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(1, 1 + shape.numel(), dtype=dtype).view(shape) * (1 + 2 * rank)


def work(rank: int, world: int) -> dict:
    axis = make_mesh(rank, Sizes(tensor=world), dist.new_group).tensor
    found: dict = {}
    for dtype in DTYPES:
        for name in FUNCTIONS:
            x = _x(rank, dtype)
            y = getattr(c, name)(x, axis)
            y.backward(_grad(rank, y.shape, dtype))
            found[name, dtype] = (y.detach(), x.grad)
        found["sum_", dtype] = c.sum_(_x(rank, dtype).detach(), axis)
        found["max_", dtype] = c.max_(_x(rank, dtype).detach(), axis)
        found["gather", dtype] = c.gather(_x(rank, dtype).t(), axis)
        found["empty", dtype] = c.sum_(torch.zeros(0, 2, dtype=dtype), axis)
    return found


@pytest.fixture(scope="module")
def found(on_ranks):
    return on_ranks(work, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_and_gradients_are_those_of_the_ranks_together(found, name, dtype):
    x = [_x(rank, dtype).detach() for rank in range(2)]
    whole, total = torch.cat(x), x[0] + x[1]
    wanted = {
        "copy_in": x,
        "sum_out": [total, total],
        "gather_rows": [whole, whole],
        "scatter_rows": list(total.split(2)),
        "own_rows": [x[0][:2], x[1][2:]],
        "all_rows": [whole, whole],
    }[name]
    g = [_grad(rank, y.shape, dtype) for rank, y in enumerate(wanted)]
    grads = {
        "copy_in": lambda: [g[0] + g[1]] * 2,
        "sum_out": lambda: g,
        "gather_rows": lambda: list((g[0] + g[1]).split(4)),
        "scatter_rows": lambda: [torch.cat(g)] * 2,
        "own_rows": lambda: [torch.cat(g)] * 2,
        "all_rows": lambda: [g[0][:4], g[1][4:]],
    }[name]()
    for rank in range(2):
        result, gradient = found[rank][name, dtype]
        assert result.equal(wanted[rank]) and result.dtype == dtype
        assert gradient.equal(grads[rank]) and gradient.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_collectives_leave_every_rank_with_the_same(found, dtype):
    x = [_x(rank, dtype).detach() for rank in range(2)]
    for one in found:
        assert one["sum_", dtype].equal(x[0] + x[1])
        assert one["max_", dtype].equal(x[1])
        assert all(a.equal(b.t()) for a, b in zip(one["gather", dtype], x, strict=True))
        assert one["empty", dtype].shape == (0, 2)


def test_alone_every_collective_gives_its_argument_back():
    x = torch.ones(3, 2)
    assert all(getattr(c, name)(x, ALONE) is x for name in (*FUNCTIONS, "sum_", "max_"))
    assert c.gather(x, ALONE) == [x]


def test_rows_that_cannot_be_shared_are_our_fault():
    from tandem.parallel import Axis

    with pytest.raises(AssertionError, match="3 rows cannot be shared by 2 ranks"):
        c.own_rows(torch.ones(3, 2), Axis(rank=0, size=2, ranks=(0, 1)))
