"""A process group of the trainer (rank 0) and the ranks of servers, for one-way broadcasts."""

import threading
import uuid
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from tandem.engine.sglang.ports import Ports

TIMEOUT = timedelta(minutes=10)


class Group:
    """A group beside the run's own: other programs join it, so it has a store and name of its own.

    The private maker of torch is what servers call too; nothing public makes a group with
    processes outside the default one.
    """

    def __init__(self, backend: str, host: str, size: int) -> None:
        self.name = f"tandem-{uuid.uuid4().hex[:8]}"
        self._backend, self._host, self._size = backend, host, size
        self._ports = Ports()
        self._group: Any = None
        # a context of its own: the device that joins is the one that is current here
        self._device = torch.cuda.current_device() if backend == "nccl" else None

    def invitation(self) -> dict[str, Any]:
        """What a server must know to join, but for its rank."""
        return {
            "master_address": self._host,
            "master_port": self._ports[1],
            "world_size": self._size,
            "group_name": self.name,
            "backend": self._backend,
        }

    def join(self) -> "Future[None]":
        """Joins, in a thread, since it waits for all others; a future of its end."""
        done: Future[None] = Future()

        def work() -> None:
            try:
                if self._device is not None:
                    torch.cuda.set_device(self._device)
                self._make()
                done.set_result(None)
            except Exception as error:  # it is told by the future
                done.set_exception(error)

        threading.Thread(target=work, name="sglang-join", daemon=True).start()
        return done

    def broadcast(self, flat: Tensor) -> Any:
        """Sends the tensor to all others; a handle to `wait` on."""
        options = c10d.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return self._group.broadcast([flat], options)

    def close(self) -> None:
        """Leaves the group."""
        group, self._group = self._group, None
        if group is not None and self._backend == "nccl":
            group.abort()
        self._ports.close()

    def _make(self) -> None:
        address = f"tcp://{self._host}:{self._ports[1]}"
        store, rank, size = next(c10d.rendezvous(address, 0, self._size, timeout=TIMEOUT))
        store.set_timeout(TIMEOUT)
        self._group, _ = c10d._new_process_group_helper(
            size,
            rank,
            [],
            c10d.Backend(self._backend),
            c10d.PrefixStore(self.name, store),
            group_name=self.name,  # type: ignore[arg-type]
            timeout=TIMEOUT,
        )
