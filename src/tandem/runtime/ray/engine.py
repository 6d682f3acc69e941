"""The embedded engine of one process: what it builds of a recipe, and the verbs of a fleet."""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tandem.carriers.group import Member
from tandem.config import Config, ParallelConfig
from tandem.data import load_tokenizer
from tandem.engine.torch.engine import TorchEngine
from tandem.engine.torch.lockstep import follow, open_wire
from tandem.errors import ConfigError, EngineError, SyncError
from tandem.models.build import dtype_of
from tandem.models.decoder import Decoder
from tandem.models.part import Part, refusals
from tandem.models.shape import Shape
from tandem.observe import get_logger
from tandem.parallel import Mesh, Sizes, sizes_of
from tandem.runtime.building import device_of
from tandem.runtime.ray.ends import Receiver
from tandem.runtime.ray.mailbox import Answer, Mailbox, Stretch
from tandem.runtime.ray.rank import Rank, Recipe, Seat, another_mesh, meet
from tandem.runtime.turns import Memory, memory_of
from tandem.runtime.weights import fill
from tandem.sync.check import of_ranks
from tandem.types import Completion, EngineStats, Request, Weights

log = get_logger("engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What an engine said of itself, as `sync.check` asks for it."""

    held: EngineStats
    digests: Mapping[str, int] | None
    logprobs_T: np.ndarray | None

    def stats(self) -> EngineStats:
        return self.held

    def state_digest(self, *, as_stored: bool) -> Mapping[str, int]:
        assert self.digests is not None, "digests were not asked for"
        return self.digests

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        assert self.logprobs_T is not None, "a canary was not asked for"
        return self.logprobs_T


class EngineSide:
    """Owns an engine, or its part in one, and its decoder where no rank lends one."""

    def __init__(self, recipe: Recipe, version: int, rank: Rank | None, seat: Seat) -> None:
        """An engine of its own starts without weights, unless nobody is there to send them."""
        cfg = recipe.cfg
        self._device = device = device_of(cfg)
        folder = cfg.model.hf_checkpoint
        assert folder is not None, "rules refuse a run without --hf-checkpoint"
        decoder = None if rank is None else rank.lent(seat.size)
        self._lender = None if decoder is None else rank
        if decoder is None:
            part = Part(mesh=_mesh(cfg, recipe.shape, device, rank, seat))
            decoder = Decoder(recipe.shape, dtype_of(cfg.model.dtype, device), device, part)
            decoder.requires_grad_(False)
            if cfg.debug.debug_rollout_only:
                fill(decoder, recipe.found, cfg.debug.seed)
        self.decoder, mesh = decoder, decoder.part.mesh
        self._wire = open_wire(mesh, device) if seat.size > 1 else None
        self.follows = mesh.tensor.rank > 0
        tokenizer, eos = load_tokenizer(folder), recipe.shape.eos_token_ids
        self._engine = TorchEngine(
            decoder,
            tokenizer,
            cfg.engine,
            device,
            eos,
            version=version,
            records_experts=cfg.algo.use_rollout_routing_replay,
            wire=None if self.follows else self._wire,
        )
        self._is_held = self._is_halted = False
        self._given: list[Answer] = []  # of what `advance` queued
        self._mailbox = Mailbox(self._engine, self._give_in)
        self._receiver = Receiver(cfg, device)

    @property
    def has_work(self) -> bool:
        """Whether requests are live and not held; may be asked from another thread."""
        return not self._is_held and self._has_requests

    @property
    def _has_requests(self) -> bool:
        stats = self._engine.stats()
        return stats.num_running + stats.num_waiting > 0

    async def follow(self) -> None:
        """Does what the engine's first rank does, until that closes it."""
        assert self._wire is not None, "an engine of one process has nobody to follow"
        try:
            await asyncio.to_thread(follow, self._engine, self._wire, self._own_digests)
        except Exception as error:
            log.warning("this rank of an engine ends: %s", error)
            os._exit(1)

    def _give_in(self) -> None:
        """Ends the process where a step failed that others do too: they may differ by now, and
        all of them are to be replaced."""
        if self._wire is not None:
            os._exit(1)

    def ask(self, requests: Sequence[Request], ids: Sequence[str]) -> None:
        """Queues the requests, and ends those of these ids; their answers are to be taken."""
        self._is_held = False
        self._mailbox.ask(requests)
        if ids:
            self._engine.drop(set(ids))

    async def take(self) -> list[Answer]:
        """What has been answered since the last call; waits until there is something."""
        return await self._mailbox.take()

    def hold(self) -> None:
        """Takes no step by itself until `release`; requests may come and go."""
        self._is_held = True
        self._engine.hold()

    def release(self) -> None:
        """Goes on by itself."""
        self._is_held = False
        self._engine.release()

    async def advance(
        self, most: int | None, requests: Sequence[Request], ids: Sequence[str]
    ) -> Stretch:
        """What was answered in so many steps, fewer if all is answered; these requests are queued
        before them, and those of these ids ended.

        None: up to the first step that answers something. Nothing else has the engine take steps
        for such requests.
        """
        for request in requests:
            self._put(request)
        if ids:
            self._engine.drop(set(ids))
        answered = [(0, self._handed())]
        num_steps, self._is_held, self._is_halted = 0, False, False
        while self._has_requests and num_steps != most and not self._is_halted:
            self._engine.step()
            num_steps += 1
            if self._given:
                answered.append((num_steps, self._handed()))
                if most is None:
                    break
            await asyncio.sleep(0)  # other calls have their turn
        self._is_held = True
        return answered

    def halt(self) -> None:
        """Has `advance` take no further step, if it is under way."""
        self._is_halted = True

    def _put(self, request: Request) -> None:
        def deliver(done: Completion | Exception) -> None:
            if isinstance(done, Exception):
                if done.__cause__ is not None:
                    self._give_in()
                done = EngineError(str(done))
            self._given.append((request.id, done))

        try:
            self._engine.put(request, deliver)
        except EngineError as error:
            deliver(error)

    def _handed(self) -> list[Answer]:
        given, self._given = self._given, []
        return given

    def named(self, version: int) -> Iterable[tuple[str, Tensor]]:
        """The weights of this version by Hugging Face name, all of which must be taken; SyncError
        if it has others."""
        if self._lender is not None:
            return self._lender.named(version)
        held = self._engine.stats().version
        if held != version:
            raise SyncError(f"weights {version} are wanted of an engine that has {held}")
        return self._engine.named()

    def update(self, version: int, named: Iterable[tuple[str, Tensor]], *, is_shared: bool) -> None:
        """Takes weights, or the news that they have changed where they lie."""
        try:
            self._engine.update(Weights(version=version, named=named, is_shared=is_shared))
        except RuntimeError:
            self._give_in()
            raise

    def receive(self, version: int, member: Member) -> None:
        """Takes weights from a process group."""
        self.update(version, self._receiver.from_group(version, member), is_shared=False)

    def read(self, version: int, folder: str) -> None:
        """Takes weights from a folder."""
        self.update(version, self._receiver.from_folder(Path(folder)), is_shared=False)

    def took(self, version: int) -> None:
        """Takes note of weights that came past the carrier."""
        if self._wire is None:
            self._receiver.took(version, self.named(version))

    def give_up(self, port: int) -> None:
        """Ends what is being received from the group that meets at this port."""
        self._receiver.group.give_up(port)

    def forget(self) -> None:
        """Drops cached prefixes."""
        self._engine.forget()

    def sleep(self) -> None:
        """Gives the cache's memory back."""
        self._engine.sleep()

    def wake(self) -> None:
        """Makes the cache again."""
        self._engine.wake()

    def memory(self) -> Memory:
        """Of its device."""
        return memory_of(self._device)

    def stats(self) -> EngineStats:
        """What it does now, and counts since it was made."""
        return self._engine.stats()

    def show(self, as_stored: bool | None, tokens_T: np.ndarray | None) -> "Shown":
        """What it samples with: its version, digests by the names of Hugging Face or as it is
        stored (None: none), and the log-probs of a canary.

        The device is waited for once: digests are read on their way to the driver.
        """
        return Shown(
            digests=None if as_stored is None else self._digests(as_stored),
            logprobs_T=None if tokens_T is None else self._engine.canary(tokens_T),
            held=self._engine.stats(),
        )

    def _digests(self, as_stored: bool) -> Mapping[str, int]:
        """Upon a rank's weights, as they are stored: every rank's of its own, nothing gathered."""
        if self._lender is None or not as_stored:
            return self._engine.state_digest(as_stored=as_stored)
        own = self._own_digests()
        return own if self._wire is None else of_ranks(self._wire.ask(own))

    def _own_digests(self) -> Mapping[str, int]:
        assert self._lender is not None, "as stored, of an engine with tensors of its own"
        return self._lender.digests_of(self._engine)

    def do(self, verb: str, *arguments: Any) -> Any:
        """What the method of this name says."""
        try:
            return getattr(self, verb)(*arguments)
        except RuntimeError:
            self._give_in()
            raise

    def close(self) -> None:
        """Fails what is live and gives everything back."""
        self._receiver.group.close()
        self._engine.close()


def check_engine(shape: Shape, num_ranks: int) -> None:
    """Passes if so many processes can share the model in an engine; raises ConfigError."""
    flags = ParallelConfig(sequence_parallel=True)  # which only training has a need of
    failures = list(refusals(shape, _sizes(shape, num_ranks, num_ranks), flags))
    if failures:
        flag = "--rollout-num-gpus-per-engine"
        raise ConfigError(
            [
                failure.replace("--tensor-model-parallel-size", flag).replace(
                    "--expert-model-parallel-size", flag
                )
                for failure in failures
            ]
        )


def _sizes(shape: Shape, world: int, num_ranks: int) -> Sizes:
    """Each engine's ranks share the matrices, and have experts of their own."""
    expert = 1 if shape.mixture is None else num_ranks
    return sizes_of(world, tensor=num_ranks, expert=expert)


def _mesh(cfg: Config, shape: Shape, device: torch.device, rank: Rank | None, seat: Seat) -> Mesh:
    """The mesh of this engine, or of all engines among ranks, which have met before."""
    if seat.size == 1:
        return Mesh()
    if rank is None:
        return meet(cfg, seat, device, _sizes(shape, seat.size, seat.size))
    return another_mesh(cfg, device, _sizes(shape, dist.get_world_size(), seat.size))
