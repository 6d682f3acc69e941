"""Rows between two ranks of gloo, some of which send nothing."""

import pytest
import torch
import torch.distributed as dist

from tandem.parallel import ALONE, Sizes, make_mesh
from tandem.parallel.exchange import exchange, exchange_counts

SENT = [[[1, 2], [0, 3]], [[0, 0], [4, 0]]]
"""By case and rank: how many rows go to each rank."""


def _rows(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(2 * count, dtype=dtype).view(count, 2) + 100 * rank).requires_grad_()


def work(rank: int, world: int) -> list:
    axis = make_mesh(rank, Sizes(expert=world, data=world), dist.new_group).expert
    found = []
    for sent in SENT:
        counts = exchange_counts(torch.tensor(sent[rank]), axis)
        rows = _rows(rank, sum(sent[rank]), torch.float32)
        out = exchange(rows, sent[rank], counts.tolist(), axis)
        out.backward(10 * out.detach())
        half = exchange(rows.detach().bfloat16(), sent[rank], counts.tolist(), axis)
        found.append((counts, out.detach(), rows.grad, half))
    return found


@pytest.fixture(scope="module")
def found(on_ranks):
    return on_ranks(work, 2)


@pytest.mark.parametrize("case", range(len(SENT)))
def test_rows_arrive_in_the_order_of_their_senders_and_gradients_go_back(found, case):
    sent = SENT[case]
    parts = [
        _rows(rank, sum(sent[rank]), torch.float32).detach().split(sent[rank]) for rank in (0, 1)
    ]
    for rank in (0, 1):
        counts, out, grad, half = found[rank][case]
        wanted = torch.cat([parts[sender][rank] for sender in (0, 1)])
        assert counts.tolist() == [sent[sender][rank] for sender in (0, 1)]
        assert out.equal(wanted) and half.equal(wanted.bfloat16())
        assert grad.equal(10 * torch.cat(parts[rank]))


def test_alone_rows_stay_where_they_are():
    rows = torch.ones(3, 2)
    assert exchange(rows, [3], [3], ALONE) is rows
    assert exchange_counts(rows, ALONE) is rows
