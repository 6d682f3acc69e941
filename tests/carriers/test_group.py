"""Weights that travel through a process group of their own."""

import os
import signal
import threading
from datetime import timedelta

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


def joined(rank, world):
    """This rank's end of a group of all ranks, which meet through the world's own group."""
    store = open_store("127.0.0.1") if rank == 0 else None
    port = [None if store is None else store.port]
    dist.broadcast_object_list(port, src=0)
    member = Member(host="127.0.0.1", port=port[0], rank=rank, size=world)
    return Group(member, CPU, TIMEOUT, store).join()


def twice(rank, world):
    """What a rank has of two updates, the second through the same group."""
    group, found = joined(rank, world), []
    for version in (3, 4):
        named = [(name, tensor + version) for name, tensor in SENT.items()]
        if rank == 0:
            found.append(group.send(version, named, LIMIT))
        else:
            found.append({name: one.clone() for name, one in group.receive(version)})
    dist.barrier()
    group.abort()
    return found


def test_every_receiver_has_what_was_sent(on_ranks):
    sender, *receivers = on_ranks(twice, 3)
    assert sender == [sum(tensor.nbytes for tensor in SENT.values())] * 2
    for received in receivers:
        for version, found in zip((3, 4), received, strict=True):
            assert list(found) == list(SENT)
            for name, tensor in SENT.items():
                assert found[name].dtype == tensor.dtype
                assert found[name].equal(tensor + version)


def forked(receive, port, rank):
    """The process id of a child that joins as `rank` of 3 and receives; it ends with 7 if the
    update was given up."""
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        group = Group(Member(host="127.0.0.1", port=port, rank=rank, size=3), CPU, TIMEOUT).join()
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


def with_a_loss(rank, world):
    """How an update ends whose second receiver is killed: what the sender says, and how the first
    receiver ended."""
    store = open_store("127.0.0.1")
    staying, dying = (
        forked(one, store.port, 1 + i) for i, one in ((0, all_of_it), (1, half_of_it))
    )
    group = Group(
        Member(host="127.0.0.1", port=store.port, rank=0, size=3), CPU, TIMEOUT, store
    ).join()

    def mourn():
        os.waitpid(dying, 0)
        group.abort()

    mourner = threading.Thread(target=mourn)
    mourner.start()
    named = ((str(n), torch.full((100_000,), float(n))) for n in range(60))
    said = ""
    try:
        group.send(0, named, 400_000)
    except SyncError as error:
        said = str(error)
    mourner.join()
    _, status = os.waitpid(staying, 0)
    return said, os.waitstatus_to_exitcode(status)


def test_a_receiver_that_is_lost_ends_the_update_for_all(on_ranks):
    ((said, ended),) = on_ranks(with_a_loss, 1)
    assert "weight update 0 could not be sent" in said
    assert ended == 7
