"""Weights that are handed from process to process."""

import multiprocessing
import os

import pytest
import torch

from tandem.carriers.ipc import receive, send
from tandem.errors import SyncError

NAMED = {str(n): torch.full((n, 7), float(n)) for n in range(1, 30)}


def with_a_child(take, device="cpu"):
    """What the sender says, to a child that takes from its end of the wire."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=take, args=(theirs,))
    child.start()
    theirs.close()
    try:
        return send(ours, ((name, one.to(device)) for name, one in NAMED.items()), 1000)
    finally:
        child.join()
        assert child.exitcode == 0


def take_all(wire):
    found = {name: tensor.cpu() for name, tensor in receive(wire)}
    assert list(found) == list(NAMED)
    assert all(found[name].equal(tensor) for name, tensor in NAMED.items())


def take_some(wire):
    for name, _ in receive(wire):
        if name == "9":
            os._exit(0)


def test_another_process_has_what_was_handed_over():
    assert with_a_child(take_all) == sum(tensor.nbytes for tensor in NAMED.values())


def test_a_receiver_that_ends_is_noticed():
    with pytest.raises(SyncError, match="could not be handed over"):
        with_a_child(take_some)


@pytest.mark.gpu
def test_another_process_reads_the_buffer_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert with_a_child(take_all, "cuda") == sum(tensor.nbytes for tensor in NAMED.values())
