"""How the driver has weights carried from the ranks to engines, by the flags (dialect 1.7)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ray

from tandem.carriers.group import Member
from tandem.config import Config, flat
from tandem.hooks import Hook, Spec, load
from tandem.runtime.ray.calls import failure_of
from tandem.runtime.ray.line import Line
from tandem.runtime.ray.trainers import TrainerFleet

POST_WRITE = Spec("--custom-update-weight-post-write-path", "args, version_dir, rollout_engines")

Faults = Mapping[Line, Exception]
"""Engines that an update did not reach, and why."""


class Carrier(Protocol):
    """Brings weights to engines that do not read the ranks' own."""

    def send(self, lines: Sequence[Line], version: int) -> Faults:
        """The engines that it did not reach; raises what ends the run."""

    def numbers(self) -> Mapping[str, float]:
        """Metrics of the last update."""


def carrier_of(cfg: Config, trainers: TrainerFleet) -> Carrier:
    """What the flags choose; raises HookError."""
    if cfg.sync.update_weight_transport == "disk":
        return FolderCarrier(cfg, trainers)
    return DirectCarrier(trainers)


class DirectCarrier:
    """From device to device: a group of the first rank and all engines on devices of their own.

    An engine in a rank's process takes what that rank gathers with the others.
    """

    def __init__(self, trainers: TrainerFleet) -> None:
        self._trainers = trainers
        self._handles: list[Any] = []  # of the engines in the group
        self._members: list[Member] = []

    def send(self, lines: Sequence[Line], version: int) -> Faults:
        """The engines that it did not reach; raises what ends the run."""
        apart = [line for line in lines if not line.has_rank]
        faults: dict[Line, Exception] = {}
        if len(apart) < len(lines):
            faults |= self._gather(lines, version)
        if apart:
            faults |= self._broadcast(apart, version)
        return faults

    def numbers(self) -> Mapping[str, float]:
        return {}

    def _gather(self, lines: Sequence[Line], version: int) -> Faults:
        """Every rank walks; those that an engine shares a process with put what they see there."""
        inside = {line.handle: line for line in lines if line.has_rank}
        refs = [
            worker.update_from_rank.remote(version)
            if worker in inside
            else worker.learn.remote("walk", version)
            for worker in self._trainers.workers
        ]
        self._trainers.answers(refs, "update weights")
        return {}

    def _broadcast(self, lines: Sequence[Line], version: int) -> Faults:
        handles = [line.handle for line in lines]
        if handles != self._handles:
            host, port = self._trainers.first("invite")
            self._handles, size = handles, 1 + len(handles)
            self._members = [
                Member(host=host, port=port, rank=rank, size=size) for rank in range(size)
            ]
        first, *others = self._members
        sending = self._trainers.start_export("broadcast", version, first)
        receiving = {
            line.handle.renew.remote("receive", version, member): line
            for line, member in zip(lines, others, strict=True)
        }
        faults = _faults(receiving, sending, self._give_up)
        said = self._trainers.answers(sending, "send weights")[0]
        if said or faults:
            self._handles = []  # a group that lost somebody is of no more use
        return faults

    def _give_up(self) -> None:
        for handle in (self._trainers.workers[0], *self._handles):
            handle.give_up.remote(self._members[0].port)


class FolderCarrier:
    """Through a folder that trainer and engines see: whole weights, or what changed in them."""

    def __init__(self, cfg: Config, trainers: TrainerFleet) -> None:
        """Raises HookError."""
        self._trainers, self._args = trainers, flat(cfg)
        self._keeps = cfg.sync.update_weight_disk_keep_files
        self._is_delta = cfg.sync.update_weight_mode == "delta"
        path = cfg.sync.custom_update_weight_post_write_path
        self._hook: Hook | None = None if path is None else load(path, POST_WRITE)
        self._numbers: dict[str, float] = {}

    def send(self, lines: Sequence[Line], version: int) -> Faults:
        """The engines that it did not reach; raises what ends the run."""
        refs = self._trainers.start_export("write", version)
        sent = self._trainers.answers(refs, "write weights")[0]
        if self._hook is not None:
            try:
                self._hook.call(self._args, str(sent.folder), [line.handle for line in lines])
            except Exception as error:
                raise self._hook.failed(error, sent.folder.name) from error
        receiving = {
            line.handle.renew.remote("read", version, str(sent.folder)): line for line in lines
        }
        faults = _faults(receiving, (), lambda: None)
        if not self._keeps:
            self._trainers.first("remove", str(sent.folder))
        self._numbers = {"perf/update_weights_wire_bytes": float(sent.wire_bytes)}
        if self._is_delta:
            self._numbers["perf/update_weights_density"] = sent.density
        return faults

    def numbers(self) -> Mapping[str, float]:
        """Bytes that were written, and the share of bytes that changed where only those are."""
        return self._numbers


def _faults(receiving: Mapping[Any, Line], sending: Sequence[Any], give_up: Any) -> Faults:
    """The faults of the receivers once all calls have ended; at the first, all are given up.

    That is a receiver's, or what the sender says went wrong. A sender that fails altogether ends
    the wait, since its fault ends the run.
    """
    faults: dict[Line, Exception] = {}
    is_over = False
    waiting = [*receiving, *sending]
    while waiting:
        done, waiting = ray.wait(waiting, timeout=1.0)
        for ref in done:
            failure = failure_of(ref)
            if ref in receiving:
                if failure is not None:
                    faults[receiving[ref]] = failure
            elif failure is not None:
                return faults
            if not is_over and (faults or (ref not in receiving and ray.get(ref))):
                is_over = True
                give_up()
    return faults
