"""Weights as a Hugging Face folder of every version, which engines of any host read."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from tandem.carriers.buckets import Named
from tandem.checkpoint.folders import clear_leftovers, hidden_folder, publish_folder
from tandem.checkpoint.hugging_face import save_hugging_face
from tandem.errors import SyncError

PREFIX = "weight_v"


def folder_of(root: Path, version: int) -> Path:
    """The folder of a version."""
    return root / f"{PREFIX}{version:06d}"


def write(root: Path, version: int, named: Named, origin: Path) -> Path:
    """The folder with these weights and the companions of `origin`, whole or not there."""
    folder = folder_of(root, version)
    save_hugging_face(named, folder, origin, force=True)
    return folder


def named_in(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a folder's weight files; raises SyncError if it has none."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SyncError(f"no weights are in {folder}; does this host see --update-weight-disk-dir?")
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)


def copied_here(folder: Path, local: Path) -> Path:
    """The copy of `folder` in `local`, made by the first process of this host that wants it; older
    versions there are deleted."""
    copy = local / folder.name
    with alone_in(local):
        if not copy.exists():
            copy_whole(folder, copy)
        for old in local.glob(f"{PREFIX}*"):
            if old != copy:
                shutil.rmtree(old)
    return copy


def copy_whole(folder: Path, final: Path) -> None:
    """Copies the folder, so that the copy is whole or not there; one of that name is replaced."""
    if not folder.is_dir():
        raise SyncError(f"{folder} is not there; does this host see --update-weight-disk-dir?")
    clear_leftovers(final.parent, final.name)
    temporary = hidden_folder(final)
    shutil.copytree(folder, temporary, dirs_exist_ok=True)
    publish_folder(temporary, final)


@contextmanager
def alone_in(local: Path) -> Iterator[None]:
    """Keeps other processes of this host out of the folder, which is made if it is not there."""
    local.mkdir(parents=True, exist_ok=True)
    with open(local / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
