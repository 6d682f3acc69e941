"""Both ends of a weight update in the processes of a run: what a rank sends with, and what an
engine receives with."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from tandem.carriers.buckets import Named
from tandem.carriers.delta import DeltaWriter, LocalCopy, Sent
from tandem.carriers.folder import copied_here, named_in, write
from tandem.carriers.group import Group, Member, open_store
from tandem.config import Config
from tandem.errors import SyncError

Tensors = Iterator[tuple[str, Tensor]]


class GroupEnd:
    """Owns this process's end of the group that weights travel through, while there is one."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self._timeout = timedelta(minutes=cfg.cluster.distributed_timeout_minutes)
        self._device = device
        self._store: torch.distributed.TCPStore | None = None
        self._group: Group | None = None
        self._given_up: int | None = None

    def invite(self, host: str) -> tuple[str, int]:
        """Where the others meet this process, which is at `host`."""
        self.close()
        self._store = open_store(host)
        return host, self._store.port

    def joined(self, member: Member) -> Group:
        """The group that this is a member of; made now if it is a new one."""
        if self._group is None or self._group.member != member:
            self._leave()
            store = self._store if member.rank == 0 else None
            self._group = Group(member, self._device, self._timeout, store)
            if self._given_up == member.port:
                self._group.abort()
            self._group.join()
        return self._group

    def give_up(self, port: int) -> None:
        """Ends what another thread waits for, or will, in the group that meets at this port."""
        self._given_up = port
        group = self._group
        if group is not None and group.member.port == port:
            group.abort()

    def close(self) -> None:
        """Leaves the group."""
        self._leave()
        self._store = None

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.abort()


class Sender:
    """What the first rank sends weights with."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        """Raises ConfigError where a package is missing."""
        self.group = GroupEnd(cfg, device)
        self._limit = cfg.sync.update_weight_buffer_size
        self._deltas: DeltaWriter | None = None
        if cfg.sync.update_weight_transport == "disk":
            assert cfg.sync.update_weight_disk_dir and cfg.model.hf_checkpoint, "rules want both"
            self._root = Path(cfg.sync.update_weight_disk_dir)
            self._origin = Path(cfg.model.hf_checkpoint)
        if cfg.sync.update_weight_mode == "delta":
            self._deltas = DeltaWriter(
                self._root,
                self._origin,
                encoding=cfg.sync.update_weight_delta_encoding,
                checksum=cfg.sync.update_weight_delta_checksum,
            )

    def broadcast(self, version: int, named: Named, member: Member) -> str:
        """What went wrong with sending to the other members; nothing if all is well."""
        try:
            self.group.joined(member).send(version, named, self._limit)
        except SyncError as error:
            return str(error)
        return ""

    def write(self, version: int, named: Named) -> Sent:
        """What was written of these weights."""
        if self._deltas is not None:
            return self._deltas.write(version, named)
        sizes: list[int] = []
        folder = write(self._root, version, _counted(named, sizes), self._origin)
        return Sent(folder=folder, density=1.0, wire_bytes=sum(sizes))


class Receiver:
    """What an engine receives weights with."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self.group = GroupEnd(cfg, device)
        local, origin = cfg.sync.update_weight_local_checkpoint_dir, cfg.model.hf_checkpoint
        assert origin is not None, "rules refuse a run without --hf-checkpoint"
        self._origin = Path(origin)
        self._local = None if local is None else Path(local)
        self._copy: LocalCopy | None = None
        if cfg.sync.update_weight_mode == "delta":
            assert self._local is not None, "rules want a local folder"
            self._copy = LocalCopy(self._local)

    def from_group(self, version: int, member: Member) -> Tensors:
        """The tensors as they come; raises SyncError."""
        return self.group.joined(member).receive(version)

    def from_folder(self, folder: Path) -> Tensors:
        """The tensors of a folder, or of this host's copy of it; raises SyncError."""
        if self._copy is not None:
            return named_in(self._copy.follow(folder))
        return named_in(folder if self._local is None else copied_here(folder, self._local))

    def took(self, version: int, named: Iterable[tuple[str, Tensor]]) -> None:
        """Takes note of weights that came another way: changes to come are changes of these."""
        if self._copy is not None:
            self._copy.replace(version, named, self._origin)


def _counted(named: Named, sizes: list[int]) -> Tensors:
    for name, tensor in named:
        sizes.append(tensor.nbytes)
        yield name, tensor
