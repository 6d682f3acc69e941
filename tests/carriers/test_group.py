"""Weights that travel through a process group of their own."""

import os
import signal
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tandem.carriers.group import Group, Member, open_store
from tandem.errors import SyncError

CPU = torch.device("cpu")
TIMEOUT = timedelta(seconds=60)
LIMIT = 3000
SENT = {
    "embed": torch.arange(1000.0).view(50, 20),  # a bucket of its own: larger than the limit
    "norm": torch.arange(20.0).bfloat16(),
    "out": torch.arange(600.0).view(20, 30),
    "empty": torch.zeros(0, 4),
    "down": -torch.arange(90.0).view(3, 30),
}


def joined(rank, world, device=CPU):
    """This rank's end of a group of all ranks, which meet through the world's own group."""
    store = open_store("127.0.0.1") if rank == 0 else None
    port = [None if store is None else store.port]
    dist.broadcast_object_list(port, src=0)
    member = Member(host="127.0.0.1", port=port[0], rank=rank, size=world)
    return Group(member, device, TIMEOUT, store).join()


def twice(rank, world, device=CPU):
    """What a rank has of two updates, the second through the same group."""
    group, found = joined(rank, world, device), []
    for version in (3, 4):
        named = [(name, (tensor + version).to(device)) for name, tensor in SENT.items()]
        if rank == 0:
            found.append(group.send(version, named, LIMIT))
        else:
            found.append({name: one.cpu() for name, one in group.receive(version)})
    dist.barrier()
    group.abort()
    return found


def twice_on_gpus(rank, world):
    torch.cuda.set_device(rank)
    return twice(rank, world, torch.device("cuda", rank))


def test_every_receiver_has_what_was_sent(on_ranks):
    check(*on_ranks(twice, 3))


@pytest.mark.gpu
def test_another_gpu_has_what_was_sent(on_ranks):
    if torch.cuda.device_count() < 2:
        pytest.skip("wants two CUDA devices")
    check(*on_ranks(twice_on_gpus, 2))


def check(sender, *receivers):
    assert sender == [sum(tensor.nbytes for tensor in SENT.values())] * 2
    for received in receivers:
        for version, found in zip((3, 4), received, strict=True):
            assert list(found) == list(SENT)
            for name, tensor in SENT.items():
                assert found[name].dtype == tensor.dtype
                assert found[name].equal(tensor + version)


def forked(receive, member, device=CPU):
    """The process id of a child that joins and receives; it ends with 7 if the update was given
    up."""
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        group = Group(member, device, TIMEOUT).join()
        receive(group)
    except SyncError:
        code = 7
    finally:
        os._exit(code)


def all_of_it(group):
    for _ in group.receive(0):
        pass


def half_of_it(group):
    for name, _ in group.receive(0):
        if name == "10":
            os.kill(os.getpid(), signal.SIGKILL)


def sent_with_a_loss(members, store, dying, device=CPU):
    """What the sender says of an update in which the child `dying` is killed."""
    group = Group(members[0], device, TIMEOUT, store).join()

    def mourn():
        os.waitpid(dying, 0)
        group.abort()

    mourner = threading.Thread(target=mourn)
    mourner.start()
    named = ((str(n), torch.full((100_000,), float(n), device=device)) for n in range(60))
    try:
        group.send(0, named, 400_000)
    except SyncError as error:
        return str(error)
    finally:
        mourner.join()


def met(size):
    store = open_store("127.0.0.1")
    return store, [
        Member(host="127.0.0.1", port=store.port, rank=rank, size=size) for rank in range(size)
    ]


def with_a_loss(rank, world):
    """How an update ends whose second receiver is killed: what the sender says, and how the first
    receiver ended."""
    store, members = met(3)
    staying, dying = forked(all_of_it, members[1]), forked(half_of_it, members[2])
    said = sent_with_a_loss(members, store, dying)
    _, status = os.waitpid(staying, 0)
    return said, os.waitstatus_to_exitcode(status)


def with_a_loss_on_gpus(rank, world):
    store, members = met(2)
    dying = forked(half_of_it, members[1], torch.device("cuda", 1))
    torch.cuda.set_device(0)
    said = sent_with_a_loss(members, store, dying, torch.device("cuda", 0))
    return said, float(torch.ones(3, device="cuda").sum())  # the process can go on


def test_a_receiver_that_is_lost_ends_the_update_for_all(on_ranks):
    ((said, ended),) = on_ranks(with_a_loss, 1)
    assert "weight update 0 could not be sent" in said
    assert ended == 7


@pytest.mark.gpu
def test_a_gpu_that_is_lost_ends_the_update_and_not_the_sender(on_ranks):
    if torch.cuda.device_count() < 2:
        pytest.skip("wants two CUDA devices")
    ((said, went_on),) = on_ranks(with_a_loss_on_gpus, 1)
    assert "weight update 0 could not be sent" in said
    assert went_on == 3
