"""Hugging Face folder to torch_dist and back, bit for bit, and the command that does it."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tandem.checkpoint import torch_dist
from tandem.checkpoint.folders import refuse_existing
from tandem.checkpoint.hugging_face import (
    CHUNK_BYTES,
    is_hugging_face,
    read_hugging_face,
    save_hugging_face,
)
from tandem.checkpoint.megatron import is_megatron, read_megatron, write_megatron
from tandem.checkpoint.names import our_shapes, to_hugging_face
from tandem.checkpoint.torch_dist import MODEL, RELEASE, TRACKER
from tandem.config import check_expectations
from tandem.config.parse import parse
from tandem.errors import CheckpointError, ConfigError
from tandem.models.shape import Shape, read_shape
from tandem.observe.log import get_logger

_logger = get_logger("checkpoint")

_VOCABULARY = ("embed.weight", "head.weight")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def hf_to_torch_dist(
    folder: str | Path, root: str | Path, *, expected: Mapping[str, Any] | None = None
) -> Path:
    """The `release` folder that now holds the weights of a Hugging Face folder, dtype unchanged.

    `expected` are the model flags of a launch script, checked against the folder's config first.
    Raises ConfigError with every mismatch, CheckpointError.
    """
    folder, root = Path(folder), Path(root)
    shape = read_shape(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    check_expectations(expected or {}, config)
    taken = [i for i in torch_dist.complete_iterations(root) if i != RELEASE]
    if taken:
        raise CheckpointError(
            f"{root} holds the saves of a run (iterations {', '.join(map(str, taken))}), and "
            f"{TRACKER} would no longer point at them; convert into another folder"
        )
    tensors = {MODEL + name: tensor for name, tensor in read_hugging_face(shape, folder)}
    return torch_dist.save(root, RELEASE, tensors, {"shape": asdict(shape)})


def hf_to_megatron(folder: str | Path, root: str | Path) -> Path:
    """The `release` folder, as Megatron-Core reads it, of the weights of a Hugging Face folder.

    Raises CheckpointError.
    """
    shape, root = read_shape(folder), Path(root)
    refuse_existing(root, force=False, flag="another --save")
    return write_megatron(read_hugging_face(shape, folder), root, shape)


def torch_dist_to_hf(
    folder: str | Path,
    output: str | Path,
    origin: str | Path,
    *,
    force: bool = False,
    add_missing: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    vocab_size: int | None = None,
) -> Path:
    """The Hugging Face folder that was written from a checkpoint (its root, or one iteration).

    Config and tokenizer are those of `origin`. Weights keep the dtype they were saved in.
    `add_missing` takes tensors that the checkpoint lacks from `origin`; `vocab_size`, that of the
    origin's config, cuts padded rows off. Raises CheckpointError.
    """
    source, origin = _resolve(Path(folder)), Path(origin)
    if not is_hugging_face(origin):
        raise CheckpointError(f"--origin-hf-dir {origin} is not a Hugging Face folder")
    shape = read_shape(origin)
    if vocab_size not in (None, shape.vocab):
        raise CheckpointError(
            f"--vocab-size {vocab_size} is not that of {origin}, which is {shape.vocab}"
        )
    named = _from_checkpoint(source, shape, origin, add_missing, cuts_vocab=vocab_size is not None)
    save_hugging_face(
        to_hugging_face(shape, named), output, origin, chunk_bytes=chunk_bytes, force=force
    )
    return Path(output)


def convert_command(argv: Sequence[str]) -> int:
    """The exit status of `tandem convert`: to-torch-dist, to-megatron or to-hugging-face."""
    parser = _parser()
    chosen, rest = parser.parse_known_args(argv)
    if rest and chosen.way != "to-torch-dist":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if chosen.way == "to-torch-dist":
        given = parse(rest)
        failures = given.failures + [f"{said}: {why}" for said, why in given.refused.items()]
        if failures:
            raise ConfigError(failures)
        unused = [f"--{name.replace('_', '-')}" for name in given.values]
        if unused:
            _say(f"without effect on a conversion: {', '.join(unused)}")
        written = hf_to_torch_dist(chosen.hf_checkpoint, chosen.save, expected=given.expectations)
        _say(f"wrote {written}; use it as --ref-load {chosen.save}")
    elif chosen.way == "to-megatron":
        _say(f"wrote {hf_to_megatron(chosen.hf_checkpoint, chosen.save)}")
    else:
        if chosen.model_name:
            _say("--model-name has no effect: the origin's config names the model")
        written = torch_dist_to_hf(
            chosen.input_dir,
            chosen.output_dir,
            chosen.origin_hf_dir,
            force=chosen.force,
            add_missing=chosen.add_missing_from_origin_hf,
            chunk_bytes=chosen.chunk_size,
            vocab_size=chosen.vocab_size,
        )
        _say(f"wrote {written}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tandem convert", description="Converts checkpoints, bit for bit.", allow_abbrev=False
    )
    ways = parser.add_subparsers(dest="way", required=True)
    for way, description, epilog in (
        (
            "to-torch-dist",
            "Writes the release folder of a checkpoint from a Hugging Face folder.",
            "Model flags of launch scripts (--num-layers ...) are checked against the folder.",
        ),
        (
            "to-megatron",
            "Writes a Hugging Face folder as a release of Megatron-Core's torch_dist.",
            None,
        ),
    ):
        one = ways.add_parser(way, description=description, epilog=epilog, allow_abbrev=False)
        one.add_argument("--hf-checkpoint", required=True, help="Hugging Face folder to read")
        one.add_argument("--save", required=True, help="root of the checkpoint to write")
    add = ways.add_parser(
        "to-hugging-face",
        description="Writes a Hugging Face folder from a checkpoint.",
        allow_abbrev=False,
    ).add_argument
    add("--input-dir", required=True, help="root of a checkpoint, or one of its iter_ folders")
    add("--output-dir", required=True, help="folder to write")
    add("--origin-hf-dir", required=True, help="folder whose config and tokenizer are copied")
    add("-f", "--force", action="store_true", help="replace the output folder")
    add(
        "-a",
        "--add-missing-from-origin-hf",
        action="store_true",
        help="take tensors that the checkpoint lacks from the origin",
    )
    add("--chunk-size", type=_bytes_of, default=CHUNK_BYTES, help="bytes of a weight file, as 5GiB")
    add("--vocab-size", type=int, help="cut padded rows of the vocabulary off")
    add("--model-name", help="without effect: the origin's config names the model")
    return parser


def _resolve(folder: Path) -> Path:
    """The complete folder that a root, or an iteration itself, stands for."""
    if (folder / TRACKER).is_file():
        return torch_dist.complete_folder(folder, torch_dist.latest(folder))
    flaw = torch_dist.flaw_of(folder)
    if flaw is not None:
        raise CheckpointError(
            f"{folder} {flaw}, and has no {TRACKER}; a checkpoint's root or one of its iterations "
            "is wanted"
        )
    return folder


def _from_checkpoint(
    source: Path, shape: Shape, origin: Path, add_missing: bool, *, cuts_vocab: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors by our name. What is there and does not fit is left to the writer."""
    if is_megatron(source):
        yield from read_megatron(source, our_shapes(shape))
        return
    saved = torch_dist.saved_tensors(source)
    ours = [name.removeprefix(MODEL) for name in saved if name.startswith(MODEL)]
    # in the order of the decoder, so that files come out as those of the origin
    order = [name for name in our_shapes(shape) if name in ours]
    order += sorted(set(ours) - set(order))
    for name, tensor in torch_dist.read_tensors(source, [MODEL + name for name in order]):
        own = name.removeprefix(MODEL)
        if own in _VOCABULARY and cuts_vocab:
            tensor = tensor[: shape.vocab]
        yield own, tensor
    if add_missing and len(order) < len(our_shapes(shape)):
        for own, tensor in read_hugging_face(shape, origin):
            if own not in ours:
                _logger.warning("%s comes from %s", own, origin)
                yield own, tensor


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _bytes_of(text: str) -> int:
    for unit, size in _UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * size)
    return int(text)
