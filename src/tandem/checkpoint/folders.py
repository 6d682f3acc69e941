"""Folders that appear whole or not at all, whatever stops the writer.

A folder is written under a hidden name beside its final one, pushed to the disk, and renamed. An
older folder of that name steps aside first and is deleted last; between those two renames a reader
finds it under its `.old` name, so there is no moment without a whole folder.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tandem.errors import CheckpointError


def hidden_folder(final: Path) -> Path:
    """A new empty folder to write into, beside `final`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    return temporary


def clear_leftovers(parent: Path, name: str) -> None:
    """Deletes what interrupted writers of `parent / name` left, and finishes their exchange.

    `name` may be a pattern such as `iter_*`; nothing else in `parent` is touched.
    """
    for path in parent.glob(f".{name}.tmp-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for old in parent.glob(f".{name}.old"):
        final = parent / old.name.removeprefix(".").removesuffix(".old")
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)


def is_leftover(path: Path) -> bool:
    """Whether an interrupted writer left this behind unfinished."""
    return path.name.startswith(".") and ".tmp-" in path.name


def settled(final: Path) -> Path:
    """Where the folder `final` is to be read: beside itself if an exchange was interrupted."""
    old = _old(final)
    return old if old.exists() and not final.exists() else final


def publish_folder(
    temporary: Path, final: Path, on_stage: Callable[[str], None] = lambda stage: None
) -> None:
    """Gives `temporary` its final name once every byte of it is on the disk.

    `on_stage` hears "aside" when an older folder stepped aside and none has the name.
    """
    sync_tree(temporary)
    old = _old(final)
    if final.exists():
        final.rename(old)
        on_stage("aside")
    temporary.rename(final)
    sync_folder(final.parent)
    if old.exists():
        shutil.rmtree(old)


def publish_file(path: Path, text: str) -> None:
    """Replaces the file at `path` by one that holds `text`, at once."""
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Returns when every file and folder below `folder` is on the disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Returns when the names in `folder` are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_existing(folder: Path, force: bool, flag: str) -> None:
    """Raises CheckpointError if something is in `folder` and may not be replaced."""
    if folder.exists() and not force and any(folder.iterdir()):
        raise CheckpointError(f"{folder} exists and is not empty; {flag} replaces it")


def _old(final: Path) -> Path:
    return final.parent / f".{final.name}.old"
