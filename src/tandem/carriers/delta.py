"""Weights as the bytes that changed since the version before.

The first update writes a whole folder, the base. Later ones hold, for each tensor that changed, a
compressed difference and a checksum of the new bytes. Each host has a copy of its own, patched in
place; it is believed while its version and every checksum are those that were sent.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from tandem.carriers.buckets import Named
from tandem.carriers.folder import alone_in, copy_whole, folder_of, write
from tandem.checkpoint.folders import (
    clear_leftovers,
    hidden_folder,
    publish_file,
    publish_folder,
)
from tandem.checkpoint.hugging_face import INDEX_FILE
from tandem.errors import ConfigError, SyncError

LEVEL = 1  # of zstd: more would take longer than what it saves takes to travel
CHUNK_BYTES = 2**30
STATE_FILE = "version.json"
BASE_FILE = "base.json"
MOST_BYTES = 2**32  # of one tensor: places are u4
INSTALL = "pip install 'tandem-rl[delta]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What became of one tensor."""

    name: str
    payload: bytes
    num_changed: int  # bytes
    checksum: str  # of the new state


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What an update wrote."""

    folder: Path
    density: float  # changed bytes over all
    wire_bytes: int


class DeltaWriter:
    """Owns the bytes of the last version, on the host, and writes what has changed in them."""

    def __init__(self, root: Path, origin: Path, *, encoding: str, checksum: str) -> None:
        """Raises ConfigError where the packages are missing."""
        self._root, self._origin = root, origin
        self._encoding, self._checksum = encoding, checksum
        self._sum_of, self._zstd = checksum_function(checksum), zstandard()
        self._held: dict[str, np.ndarray] = {}
        self._version: int | None = None

    def write(self, version: int, named: Named) -> Sent:
        """The folder of this version, whole or not there: a base the first time, then changes."""
        base, self._version = self._version, version
        if base is None:
            folder = write(self._root, version, self._remembered(named), self._origin)
            publish_file(folder / BASE_FILE, json.dumps({"base": uuid4().hex, "version": version}))
            return Sent(folder=folder, density=1.0, wire_bytes=self._num_bytes())
        final = folder_of(self._root, version)
        clear_leftovers(final.parent, final.name)
        temporary = hidden_folder(final)
        metadata = {
            "version": version,
            "base_version": base,
            "delta_encoding": self._encoding,
            "compression_format": "zstd",
            "checksum_format": self._checksum,
        }
        changed, wire_bytes = self._write_changes(temporary, metadata, named)
        publish_folder(temporary, final)
        return Sent(folder=final, density=changed / self._num_bytes(), wire_bytes=wire_bytes)

    def _write_changes(
        self, folder: Path, metadata: Mapping[str, Any], named: Named
    ) -> tuple[int, int]:
        """Numbers of changed bytes and of bytes written."""
        from safetensors.numpy import save_file

        files: dict[str, str] = {}
        changed = wire_bytes = 0
        for number, chunk in enumerate(_chunks(self._changes(named))):
            file = f"delta-{number:05d}.safetensors"
            payloads = {one.name: np.frombuffer(one.payload, np.uint8) for one in chunk}
            save_file(payloads, folder / file, metadata={one.name: one.checksum for one in chunk})
            files |= dict.fromkeys(payloads, file)
            changed += sum(one.num_changed for one in chunk)
            wire_bytes += sum(len(one.payload) for one in chunk)
        index = {"metadata": metadata, "weight_map": files}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
        return changed, wire_bytes

    def _changes(self, named: Named) -> Iterator[Change]:
        for name, tensor in named:
            old, new = self._held[name], bytes_of(tensor)
            places = np.flatnonzero(old != new)
            if not len(places):
                continue
            assert len(new) < MOST_BYTES, f"{name} is too large for places of four bytes"
            if self._encoding == "xor":
                raw = (old ^ new).tobytes()
            else:
                count = np.array([len(places)], "<u4")
                raw = count.tobytes() + places.astype("<u4").tobytes() + new[places].tobytes()
            self._held[name] = new
            yield Change(
                name=name,
                payload=self._zstd.ZstdCompressor(LEVEL).compress(raw),
                num_changed=len(places),
                checksum=self._sum_of(new),
            )

    def _remembered(self, named: Named) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named:
            self._held[name] = bytes_of(tensor)
            yield name, tensor

    def _num_bytes(self) -> int:
        return sum(map(len, self._held.values()))


class LocalCopy:
    """A Hugging Face folder of this host that is patched in place, by one process at a time."""

    def __init__(self, local: Path) -> None:
        self._local, self.folder = local, local / "model"

    def follow(self, sent: Path) -> Path:
        """The local folder, now of the version that the folder `sent` brings; raises SyncError.

        Nothing is done if another process of this host has brought it there.
        """
        base = sent / BASE_FILE
        with alone_in(self._local):
            held = self._state()
            if base.is_file():
                wanted = json.loads(base.read_text())
                if held != wanted:
                    self._note({})
                    copy_whole(sent, self.folder)
                    self._note(wanted)
            else:
                metadata = _metadata(sent)
                if held.get("version") != metadata["version"]:
                    self._patch(sent, metadata, held)
        return self.folder

    def replace(self, version: int, named: Named, origin: Path) -> None:
        """Makes the copy anew of these weights, unless it has this version."""
        with alone_in(self._local):
            if self._state().get("version") != version:
                self._note({})
                fresh = write(self._local, version, named, origin)
                shutil.rmtree(self.folder, ignore_errors=True)
                fresh.rename(self.folder)
                self._note({"version": version})

    def _patch(self, sent: Path, metadata: Mapping[str, Any], held: Mapping[str, Any]) -> None:
        if held.get("version") != metadata["base_version"]:
            what = f"version {held['version']}" if "version" in held else "no whole version"
            raise SyncError(
                f"{self._local} holds {what}, and {sent.name} changes version "
                f"{metadata['base_version']}; it must get all weights again"
            )
        self._note({})  # until every tensor is patched
        decode = _decoder(metadata["delta_encoding"])
        sum_of = checksum_function(metadata["checksum_format"])
        where = _places(self.folder)
        for name, payload, wanted in _payloads(sent):
            if name not in where:
                raise SyncError(f"{sent.name} changes {name}, which {self.folder} has not")
            path, start, end = where[name]
            view = np.memmap(path, np.uint8, "r+", start, (end - start,))
            decode(payload, view)
            if sum_of(view) != wanted:
                raise SyncError(
                    f"{name} in {self.folder} is not what was sent once {sent.name} is applied; "
                    "it must get all weights again"
                )
        self._note({**held, "version": metadata["version"]})

    def _state(self) -> dict[str, Any]:
        """The version that the copy holds and the base that it came from; nothing while none is
        whole."""
        path = self._local / STATE_FILE
        return json.loads(path.read_text()) if path.is_file() else {}

    def _note(self, state: Mapping[str, Any]) -> None:
        publish_file(self._local / STATE_FILE, json.dumps(state))


def bytes_of(tensor: Tensor) -> np.ndarray:
    """The tensor's bytes on the host, a copy."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return flat.to("cpu", copy=True).numpy()


def checksum_function(name: str) -> Callable[[np.ndarray], str]:
    """What makes a checksum of bytes; raises ConfigError where its package is missing."""
    if name == "adler32":
        return lambda data: f"{zlib.adler32(data.data):08x}"
    try:
        if name == "xxh3-128":
            import xxhash

            return lambda data: xxhash.xxh3_128_hexdigest(data.data)
        from blake3 import blake3
    except ImportError as error:
        package = INSTALL if name == "xxh3-128" else "pip install blake3"
        raise ConfigError(
            f"--update-weight-delta-checksum {name} takes a package that is not here ({error}): "
            f"{package}, or set adler32"
        ) from error
    return lambda data: blake3(data.data).hexdigest()


def zstandard() -> Any:
    """The module; raises ConfigError where it is missing."""
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(
            f"--update-weight-mode delta takes zstandard, which is not here ({error}): {INSTALL}"
        ) from error
    return zstandard


def _chunks(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """The changes of one file after the other."""
    held: list[Change] = []
    size = 0
    for change in changes:
        held.append(change)
        size += len(change.payload)
        if size >= CHUNK_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _metadata(folder: Path) -> dict[str, Any]:
    """What a folder of changes says of itself."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise SyncError(f"{path} is not there; does this host see --update-weight-disk-dir?")
    return json.loads(path.read_text(encoding="utf-8"))["metadata"]


def _payloads(folder: Path) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, payload and checksum of each tensor that changed."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            sums = file.metadata()
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name), sums[name]


def _decoder(encoding: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """What applies a payload to the bytes of the version before, in place."""
    expand = zstandard().ZstdDecompressor().decompress

    def xor(payload: np.ndarray, view: np.ndarray) -> None:
        np.bitwise_xor(view, np.frombuffer(expand(payload.tobytes()), np.uint8), out=view)

    def overwrite(payload: np.ndarray, view: np.ndarray) -> None:
        raw = expand(payload.tobytes())
        count = int(np.frombuffer(raw, "<u4", 1)[0])
        places = np.frombuffer(raw, "<u4", count, 4)
        view[places] = np.frombuffer(raw, np.uint8, count, 4 + 4 * count)

    return xor if encoding == "xor" else overwrite


def _places(folder: Path) -> dict[str, tuple[Path, int, int]]:
    """File, first byte and last + 1 of every tensor (the format of safetensors)."""
    where = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                where[name] = (path, 8 + size + start, 8 + size + end)
    return where
