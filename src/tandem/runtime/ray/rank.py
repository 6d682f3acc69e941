"""One rank of the trainer: what a process builds of a recipe, and the verbs that a fleet calls."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tandem.carriers.delta import Sent
from tandem.carriers.group import Member
from tandem.checkpoint.find import Found
from tandem.config import Config
from tandem.contracts import EmbeddedEngine
from tandem.engine.sglang.launch import Place
from tandem.engine.sglang.outlet import Outlet
from tandem.engine.sglang.server import Address
from tandem.errors import SyncError
from tandem.kernels.digest import start_digests
from tandem.models.decoder import Decoder
from tandem.models.part import sizes_for
from tandem.models.shape import Shape
from tandem.parallel import Layout, Mesh, Sizes, make_mesh
from tandem.runtime.algorithm import load_hooks, teacher_parts
from tandem.runtime.building import device_of
from tandem.runtime.ray.ends import Sender
from tandem.runtime.room import Room, room_of
from tandem.runtime.turns import Memory, least_memory_of
from tandem.runtime.weights import policy_parts, reference_parts
from tandem.sync.check import storage_failures
from tandem.train import build_trainer
from tandem.types import COLUMNS, Batch, Canary, Group, StepStats, Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What every process of a run needs to know to build its part."""

    cfg: Config
    shape: Shape
    found: Found
    num_rollout: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """One rank's place among all, and where they meet."""

    rank: int
    size: int
    address: str  # host:port of rank 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Proofs:
    """What engines must show once they have the weights."""

    digests: Mapping[str, int] | None  # by names as ranks store tensors; None: gathered ones
    canary: Canary | None


Column = tuple[tuple[np.ndarray, ...] | None, ...]
"""One entry a group."""


class Rank:
    """Owns a trainer and its process group."""

    def __init__(self, recipe: Recipe, seat: Seat) -> None:
        cfg = recipe.cfg
        self.device = device_of(cfg)
        self._seat = seat
        mesh = meet(cfg, seat, self.device, sizes_for(seat.size, cfg.parallel))
        self.parts = policy_parts(cfg, recipe.shape, recipe.found, self.device, mesh)
        self.trainer = build_trainer(
            cfg,
            self.parts,
            reference_parts(cfg, recipe.shape, self.device, mesh),
            num_rollout=recipe.num_rollout,
            teacher=teacher_parts(cfg, recipe.shape, self.device, mesh),
            hooks=load_hooks(cfg),
        )
        self._weights: Weights | None = None  # as they are, once they were named
        self._is_walked = False  # gathered for engines
        self._cfg = cfg
        self._outlet: Outlet | None = None  # to SGLang servers, of the first rank
        self._sender: Sender | None = None  # to embedded engines, of the first rank
        if not seat.rank and cfg.engine.rollout_engine == "torch":
            self._sender = Sender(cfg, self.device)

    @property
    def layout(self) -> Layout:
        return self.trainer.layout

    @property
    def decoder(self) -> Decoder | None:
        """The policy, if this process holds all of it."""
        return self.parts[0] if self.parts[0].part.mesh.sizes.is_whole else None

    def lent(self, num_ranks: int) -> Decoder | None:
        """The policy for an engine on so many ranks, if they hold all of it as it samples."""
        sizes = self.parts[0].part.mesh.sizes
        experts = sizes.expert * sizes.expert_tensor
        is_alike = sizes.tensor == num_ranks and experts in (1, num_ranks)
        return self.parts[0] if is_alike and sizes.pipeline == 1 else None

    def annotate(self, groups: Sequence[Group]) -> dict[str, Column]:
        """The columns that the trainer added to the groups; every rank has them whole."""
        annotated = self.trainer.annotate(groups)
        columns: dict[str, Column] = {}
        for name in COLUMNS:
            column = tuple(getattr(group, name) for group in annotated)
            if any(entry is not None for entry in column):
                columns[name] = column
        return columns

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """One optimizer step for each inner list of this data rank's batches."""
        self._weights = None
        return self.trainer.step_on(steps)

    def prove(self, version: int) -> Proofs:
        """The proofs of the weights as they are, which are `version` from now on."""
        weights = self._weights = self.trainer.weights(version)
        self._is_walked = False
        # gathered weights are digested on their way to the engines
        digests = weights.digests if weights.is_shared else None
        return Proofs(digests=digests, canary=weights.canary)

    def named(self, version: int) -> Iterable[tuple[str, Tensor]]:
        """The weights of this version by Hugging Face name; SyncError if they have moved on.

        Where ranks have parts, all gather them together, and must walk to the end.
        """
        weights = self._current(version)
        if self._is_walked:
            return self.trainer.named()
        self._is_walked = True
        return weights.named

    def digests(self, version: int) -> dict[str, int]:
        """Of the weights of this version, which all ranks gather now if nobody wanted them yet."""
        if not self._is_walked:
            self.walk(version)
        digests = self._current(version).digests
        assert digests is not None, "a trainer gives digests with its weights"
        return dict(digests)

    def parts_digests(self, version: int) -> Mapping[str, int]:
        """Of the weights of this version as this rank stores them, of which it may have parts."""
        return self._as_stored(self._current(version))

    def digests_of(self, engine: EmbeddedEngine) -> Mapping[str, int]:
        """Of the tensors of an engine beside this rank: the rank's own if they are the rank's."""
        weights = self._weights
        stored = None if weights is None else weights.stored
        if weights is None or stored is None or storage_failures(engine, "it", stored):
            return start_digests(engine.tensors().items())
        return self._as_stored(weights)

    def _as_stored(self, weights: Weights) -> Mapping[str, int]:
        digests = weights.digests if weights.is_shared else weights.parts
        assert digests is not None, "a trainer gives digests with its weights"
        return digests

    def _current(self, version: int) -> Weights:
        held = None if self._weights is None else self._weights.version
        if self._weights is None or held != version:
            raise SyncError(f"weights {version} are wanted of a trainer that has {held}")
        return self._weights

    def send(self, shares: Mapping[int, Sequence[Address]], version: int, place: Place) -> None:
        """Sends the weights to this rank's share of SGLang servers, or gives its parts to those
        that do."""
        addresses = shares.get(self._seat.rank, ())
        if not addresses:
            self.walk(version)
            return
        if self._outlet is None:
            self._outlet = Outlet(self._cfg, place, addresses)
        self._outlet.send(addresses, Weights(version=version, named=self.named(version)))

    @property
    def sender(self) -> Sender:
        assert self._sender is not None, "weights of a rank that does not send"
        return self._sender

    def invite(self) -> tuple[str, int]:
        """Where engines meet this rank to receive weights."""
        return self.sender.group.invite(self._seat.address.rpartition(":")[0])

    def broadcast(self, version: int, member: Member) -> str:
        """What went wrong with sending the weights to a group; nothing if all is well."""
        named = iter(self.named(version))
        said = self.sender.broadcast(version, named, member)
        for _ in named:  # the other ranks wait for this one's parts
            pass
        return said

    def write(self, version: int) -> Sent:
        """The folder that it wrote, of which all ranks give their parts."""
        return self.sender.write(version, self.named(version))

    def remove(self, folder: str) -> None:
        """Deletes a folder that every engine has read."""
        shutil.rmtree(folder)

    def give_up(self, port: int) -> None:
        """Ends what is being sent to the group that meets at this port."""
        if self._sender is not None:
            self._sender.group.give_up(port)

    def walk(self, version: int) -> None:
        """Takes this rank's part in an export by the first."""
        for _ in self.named(version):
            pass

    def save(
        self, root: str, iteration: int, extra: Mapping[str, Any], with_optimizer: bool
    ) -> Path:
        """The folder that all ranks have written to."""
        return self.trainer.save(root, iteration, extra, with_optimizer=with_optimizer)

    def finish_saves(self) -> None:
        """Returns when every save is on the disk."""
        self.trainer.finish_saves()

    def save_hugging_face(self, folder: str, origin: str) -> None:
        """Takes this rank's part in writing the policy."""
        self.trainer.save_hugging_face(folder, origin)

    def load(self, root: str, iteration: int | None) -> Mapping[str, Any]:
        """The other rooms' `extra` of a checkpoint, which is back in place."""
        self._weights = None
        return self.trainer.load(root, iteration)

    def load_weights(self, root: str, iteration: int | None) -> Mapping[str, Any]:
        """The same where the models alone are taken."""
        self._weights = None
        return self.trainer.load_weights(root, iteration)

    def state_digest(self) -> Mapping[str, int]:
        """A digest of every tensor that a checkpoint holds."""
        return self.trainer.state_digest()

    def room(self) -> Room:
        """What this process sees of its device and host."""
        return room_of(self.trainer, self.device)

    def least_memory(self) -> Memory:
        """What was free of its device when this process held most of it."""
        return least_memory_of(self.device)

    def trim(self) -> None:
        """Gives back what the trainer holds of the device and does not use."""
        self.trainer.trim()

    def sleep(self) -> None:
        """Has the optimizers' state wait in host memory."""
        self.trainer.sleep()

    def wake(self) -> None:
        """Has it come back."""
        self.trainer.wake()

    def close(self) -> None:
        """Leaves the process group."""
        if self._outlet is not None:
            self._outlet.close()
        if self._sender is not None:
            self._sender.group.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def meet(cfg: Config, seat: Seat, device: torch.device, sizes: Sizes) -> Mesh:
    """This process's place on the mesh, once all ranks have met."""
    if seat.size == 1:
        return Mesh()
    backend, timeout = _backend(cfg, device)
    dist.init_process_group(
        backend,
        init_method=f"tcp://{seat.address}",
        rank=seat.rank,
        world_size=seat.size,
        timeout=timeout,
    )
    return another_mesh(cfg, device, sizes)


def another_mesh(cfg: Config, device: torch.device, sizes: Sizes) -> Mesh:
    """This process's place on a mesh of all processes that have met; all of them must call."""
    backend, timeout = _backend(cfg, device)
    new_group = partial(dist.new_group, timeout=timeout, backend=backend)
    return make_mesh(dist.get_rank(), sizes, new_group)


def _backend(cfg: Config, device: torch.device) -> tuple[str, timedelta]:
    backend = cfg.cluster.distributed_backend if device.type == "cuda" else "gloo"
    return backend, timedelta(minutes=cfg.cluster.distributed_timeout_minutes)
