"""Hugging Face model folders: safetensors in, safetensors out."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, no_grad

from tandem.checkpoint.folders import (
    clear_leftovers,
    hidden_folder,
    publish_folder,
    refuse_existing,
)
from tandem.checkpoint.names import (
    differences,
    hugging_face_shapes,
    merge,
    our_shapes,
    pieces,
    report,
)
from tandem.errors import CheckpointError
from tandem.models.part import Shard
from tandem.models.shape import Shape, read_shape

if TYPE_CHECKING:
    from tandem.models.decoder import Decoder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CHUNK_BYTES = 5 * 2**30
"""Bytes of one weight file at most; one larger tensor is a file of its own."""

# what a folder carries besides weights; a model card speaks of other weights and stays behind
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
_COPIED_FOLDERS = ("additional_chat_templates",)


def is_hugging_face(folder: Path) -> bool:
    """Whether this is a model folder of Hugging Face; a run's folder has a config.json as well."""
    path = folder / "config.json"
    return path.is_file() and '"model_type"' in path.read_text(encoding="utf-8", errors="replace")


def load_hugging_face(decoder: "Decoder", folder: str | Path) -> None:
    """Fills every parameter from the weights in `folder`, cast to the decoder's dtype.

    Of a model in parts only what is held here is read. Raises CheckpointError with every missing,
    unknown and misshaped tensor; then nothing was written.
    """
    parameters = dict(decoder.named_parameters())
    with no_grad():
        for name, tensor in read_hugging_face(decoder.shape, folder, decoder.shards()):
            parameters[name].copy_(tensor)


def read_hugging_face(
    shape: Shape, folder: str | Path, shards: Mapping[str, Shard] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the decoder by our name, in the dtype of the file; or these shards alone.

    All names and sizes are checked before the first tensor is read. Raises CheckpointError.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            where = _open(stack, folder)
            _check(shape, folder, where)
            if shards is None:
                whole = our_shapes(shape).items()
                shards = {name: Shard(global_shape=size) for name, size in whole}
            for name, shard in shards.items():
                parts = [
                    where[theirs].get_slice(theirs)[spans]
                    for theirs, spans in pieces(shape, name, shard)
                ]
                yield name, merge(shape, name, parts)
        except SafetensorError as error:
            raise CheckpointError(
                f"a weight file in {folder} is broken ({error}); copy or download it again"
            ) from error


def save_hugging_face(
    named: Iterable[tuple[str, Tensor]],
    folder: str | Path,
    origin: str | Path,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    force: bool = False,
) -> None:
    """Writes a model folder: `named` tensors by Hugging Face name, and all but weights of `origin`.

    The folder appears whole or not at all. An existing one is replaced when `force` is set, and
    never when it is `origin`. The copied config names the dtype of the written weights. Raises
    CheckpointError if a tensor is missing, unknown or misshaped.
    """
    folder, origin = Path(folder), Path(origin)
    if folder.resolve() == origin.resolve():
        raise CheckpointError(f"{folder} is the origin itself; write to another folder")
    refuse_existing(folder, force, "-f (--force)")
    shape = read_shape(origin)
    clear_leftovers(folder.parent, folder.name)
    temporary = hidden_folder(folder)
    try:
        written, dtypes = _write_chunks(named, temporary, chunk_bytes)
        lines = differences(written, hugging_face_shapes(shape))
        if lines:
            raise CheckpointError(f"the weights are not those of {origin}:{report(lines)}")
        copy_companions(origin, temporary)
        _name_dtype(temporary / "config.json", dtypes)
        publish_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_companions(origin: Path, folder: Path) -> None:
    """Copies config, tokenizer, chat templates and code of a model folder; no weights."""
    for pattern in _COPIED:
        for path in sorted(origin.glob(pattern)):
            if path.is_file() and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
    for name in _COPIED_FOLDERS:
        if (origin / name).is_dir():
            shutil.copytree(origin / name, folder / name)


def _open(stack: ExitStack, folder: Path) -> dict[str, Any]:
    """The open weight file of each tensor by its Hugging Face name."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{index} is not an index of weights: {error!r}") from error
        lost = sorted({file for file in names.values() if not (folder / file).is_file()})
        if lost:
            raise CheckpointError(
                f"{folder} is incomplete: {INDEX_FILE} names {len(lost)} files that are not there: "
                f"{', '.join(lost[:4])}; copy or download them again"
            )
        files = {
            file: stack.enter_context(safe_open(folder / file, framework="pt"))
            for file in sorted(set(names.values()))
        }
        return {name: files[file] for name, file in names.items()}
    single = folder / SINGLE_FILE
    if not single.is_file():
        old = " (only pytorch_model.bin: save it again as safetensors)"
        hint = old if list(folder.glob("pytorch_model*.bin")) else ""
        raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    file = stack.enter_context(safe_open(single, framework="pt"))
    return dict.fromkeys(file.keys(), file)


def _check(shape: Shape, folder: Path, where: dict[str, Any]) -> None:
    wanted = hugging_face_shapes(shape)
    found = {
        name: tuple(file.get_slice(name).get_shape())
        for name, file in where.items()
        # older Llama folders carry the angles, which follow from the config
        if not name.endswith("rotary_emb.inv_freq")
    }
    sizes = {found.get("lm_head.weight"), found.get("model.embed_tokens.weight")}
    if shape.tied and sizes == {wanted["model.embed_tokens.weight"]}:
        # some folders of tied models carry the head as well; it must then be the embedding
        head = where["lm_head.weight"].get_tensor("lm_head.weight")
        embed = where["model.embed_tokens.weight"].get_tensor("model.embed_tokens.weight")
        if head.equal(embed):
            del found["lm_head.weight"]
    lines = differences(found, wanted)
    if lines:
        raise CheckpointError(
            f"the weights in {folder} are not those that its config.json describes:{report(lines)}"
        )


def _write_chunks(
    named: Iterable[tuple[str, Tensor]], folder: Path, chunk_bytes: int
) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Writes the weight files and their index; gives every tensor's size, and the dtypes used."""
    from safetensors.torch import save_file

    files: list[dict[str, int]] = []  # bytes of each tensor, by file
    sizes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    chunk: dict[str, Tensor] = {}

    def flush() -> None:
        if chunk:
            # the mark that transformers asks for
            save_file(chunk, folder / f"{len(files)}.part", metadata={"format": "pt"})
            files.append({name: tensor.nbytes for name, tensor in chunk.items()})
            chunk.clear()

    for name, tensor in named:
        if chunk and sum(t.nbytes for t in chunk.values()) + tensor.nbytes > chunk_bytes:
            flush()
        chunk[name] = tensor.detach().cpu().contiguous()
        sizes[name] = tuple(tensor.shape)
        dtypes.add(str(tensor.dtype).removeprefix("torch."))
    flush()
    final = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        final = [SINGLE_FILE]
    for i, name in enumerate(final):
        (folder / f"{i}.part").rename(folder / name)
    if len(files) > 1:
        total = sum(sum(file.values()) for file in files)
        places = {name: final[i] for i, file in enumerate(files) for name in file}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
    return sizes, dtypes


def _name_dtype(path: Path, dtypes: set[str]) -> None:
    """Makes a config name the dtype of the weights beside it, where it names another."""
    config = json.loads(path.read_text(encoding="utf-8"))
    key = "dtype" if "dtype" in config else "torch_dtype"
    if len(dtypes) == 1 and {config.get(key)} != dtypes:
        config[key] = next(iter(dtypes))
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
