"""PyTorch's distributed checkpoint in Megatron's folder layout.

    root/latest_checkpointed_iteration.txt      "20", or "release"
    root/iter_0000020/                          written by all ranks
        __0_0.distcp ... .metadata              the tensors (torch.distributed.checkpoint)
        meta.json                               small state, and the size of every other file
        <name>.bin                              state given as bytes
    root/release/                               the same, of a converted model

A folder becomes visible by one rename after all of it is on the disk; the tracker file follows.
`meta.json` is written last: a folder without it, or with a file of another size than it says, is
not complete and is never loaded. Of a folder that Megatron-Core wrote the weights can be loaded
(`checkpoint.megatron`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tandem.checkpoint.folders import (
    clear_leftovers,
    hidden_folder,
    publish_file,
    publish_folder,
    settled,
)
from tandem.checkpoint.megatron import RELEASE, TRACKER, is_megatron, quietly_alone, read_megatron
from tandem.checkpoint.names import differences, report
from tandem.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tandem.checkpoint.pieces import Piece, Pieces

META = "meta.json"
MODEL = "model."
"""What the names of model tensors begin with; the rest is ours (`layers.0.qkv.weight`)."""
FORMAT = 1

Iteration = int | str
"""The number of the last finished rollout, or `RELEASE` for a converted model."""


def save(
    root: str | Path,
    iteration: Iteration,
    tensors: "Pieces",
    extra: Mapping[str, Any] | None = None,
    *,
    process_group: "ProcessGroup | None" = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Path:
    """The folder of the iteration, whole and on the disk; the tracker points at it.

    Every rank of `process_group` (the default group when None) calls this with its tensors, whole
    ones or pieces (`pieces.Piece`); rank 0's `extra` is kept: JSON values, or bytes. A save of an
    iteration that is there replaces it. Whatever interrupts this, the last finished save stays
    loadable. `on_stage` is told each stage that is reached: started, tensors, written, aside,
    renamed, tracked.
    """
    final = folder_of(root, iteration)
    temporary = _first(process_group, lambda: _start(final))
    on_stage("started")
    import torch.distributed.checkpoint as dcp

    from tandem.checkpoint.pieces import as_pieces
    from tandem.checkpoint.planners import PieceWriter

    pieces = as_pieces(tensors)
    writer = dcp.FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True)
    with _torch_faults(f"saving {final}"), _alone_is_fine(process_group) as is_alone:
        dcp.save(
            dict(pieces),
            storage_writer=writer,
            planner=PieceWriter(pieces),
            process_group=process_group,
            no_dist=is_alone,
        )
    on_stage("tensors")

    def finish() -> None:
        _write_meta(temporary, iteration, extra or {})
        on_stage("written")
        publish_folder(temporary, final, on_stage)
        on_stage("renamed")
        publish_file(final.parent / TRACKER, f"{iteration}\n")
        on_stage("tracked")

    _first(process_group, finish)
    return final


def load(
    root: str | Path,
    tensors: "Pieces",
    iteration: Iteration | None = None,
    *,
    prefix: str = "",
    process_group: "ProcessGroup | None" = None,
) -> dict[str, Any]:
    """The `extra` of a save, after its tensors were read into `tensors` in place.

    Every rank of `process_group` calls this with the tensors or pieces that it wants, divided in
    any way. `iteration` is the tracker's when None. Of the saved tensors, those whose names begin
    with `prefix` must be exactly those that the ranks want, in name and whole size (the dtype may
    differ: values are cast). Raises CheckpointError with every difference; then nothing was
    written.
    """
    from tandem.checkpoint.pieces import as_pieces

    folder = complete_folder(root, latest(root) if iteration is None else iteration)
    if is_megatron(folder):
        _load_megatron(folder, as_pieces(tensors), prefix)
        return {}
    found = {name: size for name, (size, _) in saved_tensors(folder).items()}
    lines = differences(
        {name: size for name, size in found.items() if name.startswith(prefix)},
        _wanted(as_pieces(tensors), process_group),
    )
    if lines:
        raise CheckpointError(f"{folder} does not hold what is to be loaded:{report(lines)}")
    read_into(folder, tensors, process_group=process_group)
    return read_extra(folder)


def latest(root: str | Path) -> Iteration:
    """What the tracker file of `root` points at; raises CheckpointError without one."""
    path = Path(root) / TRACKER
    if not path.is_file():
        raise CheckpointError(f"{root} has no {TRACKER}; it is not the root of a checkpoint")
    text = path.read_text(encoding="utf-8").strip()
    if text == RELEASE:
        return RELEASE
    if not text.isdecimal():
        raise CheckpointError(f"{path} says {text!r}; a number or {RELEASE!r} is wanted")
    return int(text)


def folder_of(root: str | Path, iteration: Iteration) -> Path:
    """Where this iteration is or would be."""
    name = iteration if isinstance(iteration, str) else f"iter_{iteration:07d}"
    return Path(root) / name


def complete_folder(root: str | Path, iteration: Iteration) -> Path:
    """Where this iteration is read from; raises CheckpointError, naming those that are complete."""
    folder = settled(folder_of(root, iteration))
    flaw = flaw_of(folder)
    if flaw is None:
        return folder
    there = ", ".join(str(i) for i in complete_iterations(root)) or "none"
    raise CheckpointError(f"{folder} {flaw}; complete in {root}: {there} (--ckpt-step picks one)")


def complete_iterations(root: str | Path) -> list[Iteration]:
    """The iterations in `root` that can be loaded, in order; a release comes first."""
    found: list[Iteration] = [RELEASE] if flaw_of(settled(Path(root) / RELEASE)) is None else []
    names = {path.name for path in Path(root).glob("*iter_*")}
    numbers = {int(match[1]) for name in names if (match := _ITERATION.fullmatch(name))}
    found += [i for i in sorted(numbers) if flaw_of(settled(folder_of(root, i))) is None]
    return found


def flaw_of(folder: Path) -> str | None:
    """Why this folder cannot be loaded; None if it is a complete checkpoint."""
    if not folder.is_dir():
        return "is not there"
    if not (folder / META).is_file():
        return None if is_megatron(folder) else f"is not complete (no {META})"
    for name, size in _meta(folder)["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"is not complete ({name} is missing or not {size} bytes long)"
    return None


def saved_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Size and dtype of every tensor in a complete folder, by name."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)  # else: bytes, which we never write
    }


def read_into(
    folder: Path,
    tensors: "Pieces",
    *,
    process_group: "ProcessGroup | None" = None,
) -> None:
    """Reads the named tensors of a complete folder in place; other tensors in it are left alone."""
    import torch.distributed.checkpoint as dcp

    from tandem.checkpoint.pieces import as_pieces
    from tandem.checkpoint.planners import PieceReader

    pieces = as_pieces(tensors)
    with _torch_faults(f"reading {folder}"), _alone_is_fine(process_group) as is_alone:
        dcp.load(
            dict(pieces),
            storage_reader=dcp.FileSystemReader(folder),
            planner=PieceReader(pieces),
            process_group=process_group,
            no_dist=is_alone,
        )


def read_tensors(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors, one by one, in the dtype they were saved in."""
    saved = saved_tensors(folder)
    for name in names:
        size, dtype = saved[name]
        tensor = torch.empty(size, dtype=dtype)
        read_into(folder, {name: tensor})
        yield name, tensor


def read_extra(folder: Path) -> dict[str, Any]:
    """The `extra` of a complete folder."""
    meta = _meta(folder)
    blobs = {name: (folder / f"{name}.bin").read_bytes() for name in meta["bytes"]}
    return meta["extra"] | blobs


_ITERATION = re.compile(r"\.?iter_(\d{7,})(?:\.old)?")


def _start(final: Path) -> Path:
    """A fresh hidden folder; what interrupted saves left is cleared first."""
    for name in ("iter_*", RELEASE, TRACKER):
        clear_leftovers(final.parent, name)
    return hidden_folder(final)


def _load_megatron(folder: Path, pieces: "Mapping[str, Piece]", prefix: str) -> None:
    if prefix != MODEL:
        raise CheckpointError(
            f"{folder} was written by Megatron, and only its model's weights are read; pass "
            "--finetune to start a new run from them"
        )
    wanted = {name.removeprefix(MODEL): piece.global_shape for name, piece in pieces.items()}
    for ours, whole in read_megatron(folder, wanted):
        pieces[MODEL + ours].fill(whole)


def _wanted(
    pieces: "Mapping[str, Piece]", group: "ProcessGroup | None"
) -> dict[str, tuple[int, ...]]:
    """Whole sizes of the tensors that any rank wants a piece of, by name."""
    own = {name: piece.global_shape for name, piece in pieces.items()}
    if group is None and not dist.is_initialized():
        return own
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, own, group=group)
    return {name: size for one in everyones for name, size in one.items()}


def _write_meta(folder: Path, iteration: Iteration, extra: Mapping[str, Any]) -> None:
    blobs = {name: value for name, value in extra.items() if isinstance(value, bytes)}
    for name, value in blobs.items():
        (folder / f"{name}.bin").write_bytes(value)
    meta = {
        "format": FORMAT,
        "iteration": iteration,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "bytes": sorted(blobs),
        "extra": {name: value for name, value in extra.items() if name not in blobs},
    }
    text = json.dumps(meta, indent=1)
    (folder / META).write_text(text + "\n", encoding="utf-8")


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / META} is not JSON: {error}") from error
    if meta["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {meta['format']}, this version reads {FORMAT}; "
            "load it with the version that wrote it"
        )
    return meta


@contextmanager
def _torch_faults(doing: str) -> Iterator[None]:
    """Turns torch's collected failures of all ranks, no `Exception` there, into one of ours."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        faults = [
            f"rank {rank}: {type(fault[0]).__name__}: {fault[0]}"
            for rank, fault in error.failures.items()
        ]
        raise CheckpointError(f"{doing} failed:{report(faults)}") from error


@contextmanager
def _alone_is_fine(group: "ProcessGroup | None") -> Iterator[bool]:
    """Whether there is no process group; torch's warning about that is kept quiet inside."""
    with quietly_alone():
        yield group is None and not dist.is_initialized()


def _first(group: "ProcessGroup | None", work: Callable[[], Any]) -> Any:
    """What `work` gives on the first rank of the group, on every rank; so is what it raises."""
    if group is None and not dist.is_initialized():
        return work()
    answer: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        try:
            answer[0] = work()
        except Exception as error:  # every rank has to hear of it, or they wait for ever
            answer[1] = error
    dist.broadcast_object_list(answer, group=group, group_src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
