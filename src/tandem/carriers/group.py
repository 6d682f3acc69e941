"""A process group beside the trainer's own: one process sends, engines in others receive.

What is in a bucket goes through the group's store, its bytes through a broadcast. The next bucket
is packed while the last one travels, and a receiver asks for the next before it reads the last.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from tandem.carriers.buckets import Bucket, Form, Named, buckets, form_of, tensors_of
from tandem.errors import SyncError

IN_FLIGHT = 2
"""Buckets that are packed and not yet with every receiver, at most."""

JOINING = timedelta(seconds=60)
"""How long the others are waited for when a group is made."""

LOOK_S = 0.002
"""Between two looks at who is there."""

BEGUN_S = 0.05
"""Within it gloo's thread has begun what it was given; abort does not end what begins later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One process's place in a group; the sender is rank 0."""

    host: str
    port: int
    rank: int
    size: int


def open_store(host: str) -> dist.TCPStore:
    """The store at which a group meets, on this host at a free port."""
    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=JOINING)


class Group:
    """Owns this process's end of a group.

    Another one takes its place when any of its processes is replaced. Made of torch's back ends
    themselves: a `torch.distributed` group can hold processes of one run of torchrun alone.
    """

    def __init__(
        self,
        member: Member,
        device: torch.device,
        timeout: timedelta,
        store: dist.TCPStore | None = None,
    ) -> None:
        """The sender gives the `store` that it opened."""
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.member, self._device, self._timeout = member, device, timeout
        self._store: Any = store
        self._group: Any = None
        self._is_over = threading.Event()
        # on the CPU nothing begins after an abort; NCCL's may not wait for a launch that hangs
        self._beginning: AbstractContextManager[Any] = (
            threading.Lock() if device.type == "cpu" else nullcontext()
        )
        self._told: list[str] = []  # keys of this update, and of the one before
        self._told_before: list[str] = []

    def join(self) -> "Group":
        """The group itself, once all are there; raises SyncError when they do not come."""
        member = self.member
        try:
            if self._store is None:
                self._store = dist.TCPStore(
                    member.host,
                    member.port,
                    is_master=False,
                    wait_for_workers=False,
                    timeout=JOINING,
                )
            self._wait_for_all(self._store)
            self._group = _meet(
                dist.PrefixStore("group", self._store), member, self._device, self._timeout
            )
        except RuntimeError as error:
            raise SyncError(f"a process group for weights could not be made: {error}") from error
        self._store.set_timeout(self._timeout)
        return self

    def _wait_for_all(self, store: dist.TCPStore) -> None:
        """Waits for the others at the store, where `abort` can end it; torch's own way cannot."""
        store.set(f"here/{self.member.rank}", "")
        keys = [f"here/{rank}" for rank in range(self.member.size)]
        deadline_s = time.monotonic() + JOINING.total_seconds()
        while not store.check(keys):
            if self._is_over.wait(LOOK_S) or time.monotonic() > deadline_s:
                raise SyncError("a process group for weights could not be made: not all came")

    def send(self, version: int, named: Named, limit: int) -> int:
        """Sends the tensors in buckets of at most `limit` bytes; how many bytes they had.

        Raises SyncError if a receiver was lost; `named` is not read on then.
        """
        for key in self._told_before:  # whoever took the last update has read them
            self._store.delete_key(key)
        self._told_before, self._told = self._told, []
        try:
            num_bytes = self._send(version, named, limit)
            self._finish()
        except RuntimeError as error:
            last = max(0, len(self._told) - 1)
            for place in (last, last + 1):  # nobody waits for more than the next one
                self._store.set(_key(version, place), json.dumps({"fault": str(error)}))
            raise SyncError(f"weight update {version} could not be sent: {error}") from error
        return num_bytes

    def receive(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors as they come; raises SyncError if the sender or another process was lost."""
        try:
            coming, place = self._ask(version, 0), 0
            while coming is not None:
                place += 1
                following = self._ask(version, place)
                bucket, work = coming
                work.wait()
                yield from tensors_of(bucket)
                coming = following
            self._finish()
        except RuntimeError as error:
            raise SyncError(f"weight update {version} did not come: {error}") from error

    def abort(self) -> None:
        """Leaves the group; what another thread waits for in it ends with an error there."""
        with self._beginning:
            self._is_over.set()
        if self._group is not None:
            if self._device.type == "cpu":
                time.sleep(BEGUN_S)
            self._group.abort()

    def _send(self, version: int, named: Named, limit: int) -> int:
        num_bytes = 0
        travelling: list[tuple[Any, Tensor]] = []
        for bucket in buckets(named, limit):
            if len(travelling) == IN_FLIGHT:
                travelling.pop(0)[0].wait()
            self._tell(version, bucket.form)
            travelling.append((self._broadcast(bucket.flat), bucket.flat))
            num_bytes += bucket.flat.nbytes
        self._tell(version, None)
        for work, _ in travelling:
            work.wait()
        return num_bytes

    def _finish(self) -> None:
        """Waits for the device; a broadcast that was given up on a GPU raises nothing by itself."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._is_over.is_set():
            raise RuntimeError("it was given up")

    def _tell(self, version: int, form: Form | None) -> None:
        key = _key(version, len(self._told))
        self._store.set(key, json.dumps(None if form is None else form.record()))
        self._told.append(key)

    def _ask(self, version: int, place: int) -> tuple[Bucket, Any] | None:
        """The bucket that comes next, and what to wait for before it is read; None at the end."""
        said = json.loads(self._store.get(_key(version, place)))
        if said is None:
            return None
        if "fault" in said:
            raise SyncError(f"weight update {version} ended at its sender: {said['fault']}")
        form = form_of(said)
        flat = torch.empty(sum(form.lengths), dtype=torch.uint8, device=self._device)
        return Bucket(form=form, flat=flat), self._broadcast(flat)

    def _broadcast(self, flat: Tensor) -> Any:
        options = c10d.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        with self._beginning:
            if self._is_over.is_set():
                raise RuntimeError("it was given up")
            return self._group.broadcast([flat], options)


def _meet(store: dist.Store, member: Member, device: torch.device, timeout: timedelta) -> Any:
    if device.type == "cuda":
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timeout
        nccl = c10d.ProcessGroupNCCL(store, member.rank, member.size, options)
        nccl.eager_connect_single_device(device)
        return nccl
    group = c10d.ProcessGroupGloo(store, member.rank, member.size, JOINING)
    group._set_default_timeout(timeout)
    return group


def _key(version: int, place: int) -> str:
    return f"{version}/{place}"
