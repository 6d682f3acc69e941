"""One device's process: a rank of the trainer, an engine, or both, behind Ray calls."""

import asyncio
import faulthandler
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from tandem.carriers.buckets import Named
from tandem.observe import set_up_logging
from tandem.parallel import Layout
from tandem.runtime.ray.carry import from_store, stored
from tandem.runtime.ray.engine import EngineSide
from tandem.runtime.ray.pulse import Pulse, Vitals, stacks
from tandem.runtime.ray.rank import Rank, Recipe, Seat

WATCH = "watch"
"""The concurrency group whose calls are answered while the process works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """Where a process is, for people."""

    host: str
    address: str
    pid: int
    devices: tuple[str, ...]

    def __str__(self) -> str:
        device = f" GPU {','.join(self.devices)}" if self.devices else ""
        return f"{self.host} ({self.address}){device} pid {self.pid}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFacts:
    """What the fleet must know of a rank."""

    layout: Layout
    is_whole: bool  # it holds every weight, whole
    lends: bool  # it and its like hold the weights as an engine here wants them


@ray.remote(concurrency_groups={WATCH: 1})  # type: ignore[call-overload]
class Worker:
    """Every call but those of the watch runs on one thread, in the order of the calls."""

    def __init__(self, name: str) -> None:
        faulthandler.enable()
        set_up_logging()
        self._name = name
        self._vitals = Vitals()
        self._rank: Rank | None = None
        self._engine: EngineSide | None = None
        self._following: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return self._name  # what log lines of this process begin with

    def where(self) -> Whereabouts:
        """The host, its address, the process and the devices that it sees."""
        devices = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return Whereabouts(
            host=socket.gethostname(),
            address=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            devices=tuple(map(str, devices)),
        )

    def free_address(self) -> str:
        """host:port where nobody listens yet."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"

    # ---- the trainer's rank

    def open_rank(self, recipe: Recipe, seat: Seat) -> RankFacts:
        """Builds the rank; it meets the others."""
        with self._vitals.span("start"):
            self._rank = Rank(recipe, seat)
        for part in self._rank.parts:
            part.register_forward_pre_hook(self._vitals.tick)
        num_ranks = recipe.cfg.cluster.rollout_num_gpus_per_engine
        return RankFacts(
            layout=self._rank.layout,
            is_whole=self._rank.decoder is not None,
            lends=self._rank.lent(num_ranks) is not None,
        )

    def learn(self, verb: str, *arguments: Any) -> Any:
        """What the rank's method says."""
        assert self._rank is not None, f"{verb} of a process without a rank"
        with self._vitals.span(verb):
            return getattr(self._rank, verb)(*arguments)

    # ---- the engine

    async def open_engine(self, recipe: Recipe, version: int, seat: Seat) -> None:
        """Builds the engine, upon the rank's own weights where it lends them.

        `seat` is the place in an engine of several processes, which all open it together.
        """
        with self._vitals.span("start"):
            self._engine = EngineSide(recipe, version, self._rank, seat)
        self._engine.decoder.register_forward_pre_hook(self._vitals.tick)
        if self._engine.follows:
            self._following = asyncio.create_task(self._engine.follow())

    async def sample(self, verb: str, *arguments: Any) -> Any:
        """What the engine's method says."""
        assert self._engine is not None, f"{verb} of a process without an engine"
        answer = self._engine.do(verb, *arguments)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def export(self, version: int, bucket_bytes: int) -> list[Any]:
        """References to buckets of all weights that the engine samples with."""
        assert self._engine is not None, "weights of a process without an engine"
        return self._put(self._engine.named(version), bucket_bytes)

    async def export_rank(self, version: int, bucket_bytes: int) -> list[Any]:
        """References to buckets of all weights of the trainer."""
        assert self._rank is not None, "weights of a process without a rank"
        return self._put(self._rank.named(version), bucket_bytes)

    def _put(self, named: Named, bucket_bytes: int) -> list[Any]:
        with self._vitals.span("export weights"):
            return [ray.put(bucket) for bucket in stored(named, bucket_bytes)]

    async def update(self, version: int, refs: Sequence[Any] | None) -> None:
        """Puts weights into the engine: those of the buckets, or the rank's own (None)."""
        assert self._engine is not None, "weights for a process without an engine"
        # the object store's own memory, until it is copied into the engine's tensors
        named = () if refs is None else from_store([await ref for ref in refs])
        with self._vitals.span("update weights"):
            self._engine.update(version, named, is_shared=refs is None)
            if refs is not None:
                self._engine.took(version)

    async def update_from_rank(self, version: int) -> None:
        """Puts into the engine what the rank beside it gathers, as all ranks do now."""
        assert self._engine is not None and self._rank is not None, "one of the two is not here"
        named = iter(self._rank.named(version))
        with self._vitals.span("update weights"):
            try:
                self._engine.update(version, named, is_shared=False)
            finally:
                for _ in named:  # the other ranks wait for this one's parts
                    pass

    async def renew(self, verb: str, version: int, *arguments: Any) -> None:
        """Has the engine take weights by a carrier."""
        assert self._engine is not None, "weights for a process without an engine"
        with self._vitals.span("update weights"):
            getattr(self._engine, verb)(version, *arguments)

    # ---- the watch, from a thread of its own

    @ray.method(concurrency_group=WATCH)
    def give_up(self, port: int) -> None:
        """Ends an update that another process of the group at this port cannot finish."""
        for side in (self._rank, self._engine):
            if side is not None:
                side.give_up(port)

    @ray.method(concurrency_group=WATCH)
    def pulse(self) -> Pulse:
        """What the process does now."""
        is_sampling = self._engine is not None and self._engine.has_work
        return self._vitals.pulse(idle="sample" if is_sampling else None)

    @ray.method(concurrency_group=WATCH)
    def stacks(self) -> str:
        """Every thread's stack."""
        return stacks()
