"""Rows of parameters shared out over processes, as `torch.chunk` divides."""

import pytest
import torch

from tandem.parallel import Axis
from tandem.train.shards import BUFFER, Spread, buckets_of, rows_of


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_are_those_of_torch_chunk(size, processes):
    rows = torch.arange(size)
    chunks = [chunk.tolist() for chunk in rows.chunk(processes)]
    for rank in range(processes):
        own = rows_of(size, Axis(rank=rank, size=processes))
        wanted = chunks[rank] if rank < len(chunks) else []
        assert rows[own.start : own.stop].tolist() == wanted


def test_buckets_hold_all_parameters_of_one_kind_up_to_a_bound():
    data, expert = Spread(Axis(size=2)), Spread(Axis(size=4))
    sizes = {"a": 10, "b": BUFFER // 32, "c": 20, "d": 30, "e": 5}
    parameters = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    parameters["e"] = torch.empty(5, device="meta", dtype=torch.bfloat16)
    spreads = {name: expert if name == "d" else data for name in sizes}
    buckets = buckets_of(parameters, spreads)
    assert sorted(bucket.names for bucket in buckets) == [("a", "c"), ("b",), ("d",), ("e",)]
