"""Seconds of a weight update between two processes, by carrier, its checks included and apart.

    torchrun --nproc-per-node 2 benchmarks/update.py [--carriers group]
    torchrun --nproc-per-node 2 benchmarks/update.py --carriers ipc folder delta
        [--layers N] [--bucket-mib 512] [--folder DIR] [--out FOLDER] [--tiny]

Qwen3-4B's shape in bf16 with random weights: one process has the trainer's decoder, the other an
engine. `group` wants two GPUs, of which each process sees its own, as in a run; the others share
the first. An update is: the trainer's proofs (digests and canary), the weights on their way into
the engine's tensors, and the engine's proofs. Every time they are other weights; for `delta`
--changed of all numbers have moved. Without Ray, so calls between driver and processes are not
counted.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import w1

from tandem.carriers import folder as folders
from tandem.carriers import ipc
from tandem.carriers.delta import DeltaWriter, LocalCopy
from tandem.carriers.group import Group, Member, open_store
from tandem.checkpoint.names import to_hugging_face
from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.linear import sum_products_in_one_order
from tandem.kernels.replay import Replayed
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape
from tandem.sync.check import failures_of
from tandem.train.model import Model
from tandem.train.publish import weights_of
from tandem.types import Weights

LINK_BYTES = 363e9  # a broadcast between two H200 of one host, measured with plain NCCL
RUNS, WARM_UPS = 5, 2
FILE_RUNS = 1  # of carriers through a disk
TIMEOUT = timedelta(minutes=2)


@dataclass
class Side:
    """What this process has of an update."""

    rank: int  # 0: trainer, 1: engine
    decoder: Decoder
    engine: TorchEngine | None
    limit: int
    dtype: str
    replayed: Replayed

    @property
    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        parameters = ((name, one.detach()) for name, one in self.decoder.named_parameters())
        return to_hugging_face(self.decoder.shape, parameters)


Carry = Callable[[int, Side], None]
"""Takes this process's part in bringing a version from one decoder into the other."""


def main() -> None:
    options = asked()
    has_two = "group" in options.carriers and not options.tiny
    if has_two:
        assert options.carriers == ["group"], "group, whose processes see one GPU each, goes alone"
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["LOCAL_RANK"]
    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank = dist.get_rank()
    assert dist.get_world_size() == 2, "one trainer and one engine"
    shape = w1.TINY if options.tiny else w1.QWEN3_4B
    shape = replace(shape, num_layers=options.layers or shape.num_layers)
    has_cuda = torch.cuda.is_available() and not options.tiny
    dtype = torch.bfloat16 if has_cuda else torch.float32
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    counts: list[int] = [0, 0]
    dist.all_gather_object(counts, torch.cuda.device_count())
    assert not (has_two and has_cuda) or min(counts), "group wants two GPUs"
    num_bytes, rows = 0, []
    for name in options.carriers:
        device = torch.device("cuda", 0) if has_cuda else torch.device("cpu")
        side = made(rank, shape, dtype, device, options.bucket_mib)
        num_bytes = sum(one.nbytes for one in side.decoder.parameters())
        with (
            tempfile.TemporaryDirectory(dir=options.folder) as scratch,
            CARRIERS[name](side, Path(scratch)) as carry,
        ):
            rows.append({"carrier": name, **measured(side, carry, name, options.changed)})
        if side.engine is not None:
            side.engine.close()
        del side, carry
        if has_cuda:
            torch.cuda.empty_cache()
    if rank == 0:
        facts = {"bytes": num_bytes, "floor_s": num_bytes / LINK_BYTES}
        w1.report("update", rows, options.out, bucket_mib=options.bucket_mib, **facts)
    dist.destroy_process_group()


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--carriers", nargs="+", choices=CARRIERS, default=["group"])
    parser.add_argument("--layers", type=int, help="fewer layers, for slow disks")
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--changed", type=float, default=0.02)
    parser.add_argument("--folder", type=Path, help="where files are written")
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    return parser.parse_args()


def made(
    rank: int, shape: Shape, dtype: torch.dtype, device: torch.device, bucket_mib: int
) -> Side:
    """This process's decoder, and its engine if it is the one that samples."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        sum_products_in_one_order()
    decoder = Decoder(shape, dtype, device).requires_grad_(False)
    decoder.init_random(rank)
    engine = None
    if rank:
        cfg = EngineConfig(engine_max_running=8, engine_cache_tokens=4096)
        engine = TorchEngine(decoder, None, cfg, device, eos_token_ids=())
    name = str(dtype).removeprefix("torch.")
    return Side(rank, decoder, engine, bucket_mib * 2**20, name, Replayed())


def measured(side: Side, carry: Carry, name: str, changed: float) -> dict[str, float]:
    """Median seconds of an update, in all and by part."""
    is_file = name in ("folder", "delta")
    warm_ups = 1 if is_file else WARM_UPS  # kernels are compiled; a base comes before a delta
    taken = []
    for version in range(warm_ups + (FILE_RUNS if is_file else RUNS)):
        if side.rank == 0:
            move(side.decoder, version, changed if name == "delta" else None)
        taken.append(updated(side, carry, version))
    rows = taken[warm_ups:]
    return {part: statistics.median(row[part] for row in rows) for part in rows[0]}


def move(decoder: Decoder, version: int, changed: float | None) -> None:
    """Gives the decoder other weights: all of them, or this share of its numbers."""
    if changed is None or not version:
        decoder.init_random(100 + version)
        return
    torch.manual_seed(version)
    for parameter in decoder.parameters():
        moves = torch.rand(parameter.shape, device=parameter.device) < changed
        parameter.mul_(torch.where(moves, 1.01, 1.0).to(parameter.dtype))


def updated(side: Side, carry: Carry, version: int) -> dict[str, float]:
    """Seconds of one update; raises if the engine does not show the trainer's weights."""
    marks = [started()]
    said: list[Any] = [None]
    if side.rank == 0:
        weights = weights_of(Model([side.decoder]), version, side.replayed)
        said[0] = dict(weights.digests), weights.canary
    marks.append(started())
    carry(version, side)
    marks.append(started())
    dist.broadcast_object_list(said, src=0)
    if side.engine is not None:
        digests, sung = said[0]
        sent = Weights(version=version, named=(), is_shared=True, digests=digests, canary=sung)
        failures = failures_of(side.engine, "the engine", sent, side.dtype)
        assert not failures, failures
    marks.append(started())
    proofs_s, carried_s, checked_s = (end - begin for begin, end in pairwise(marks))
    return {
        "update_s": marks[-1] - marks[0],
        "carried_s": carried_s,
        "trainer_proofs_s": proofs_s,
        "engine_proofs_s": checked_s,
    }


def started() -> float:
    """The time, once both processes are here and their devices idle."""
    w1.sync()
    dist.barrier()
    return time.perf_counter()


def take(side: Side, version: int, named: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Has the engine copy the tensors into its own."""
    assert side.engine is not None
    side.engine.update(Weights(version=version, named=named))


@contextmanager
def by_group(side: Side, _: Path) -> Iterator[Carry]:
    store = open_store("127.0.0.1") if side.rank == 0 else None
    port = [None if store is None else store.port]
    dist.broadcast_object_list(port, src=0)
    member = Member(host="127.0.0.1", port=port[0], rank=side.rank, size=2)
    device = side.decoder.head_weight.device
    group = Group(member, device, TIMEOUT, store).join()

    def carry(version: int, side: Side) -> None:
        if side.rank == 0:
            group.send(version, side.named, side.limit)
        else:
            take(side, version, group.receive(version))

    yield carry
    dist.barrier()
    group.abort()


@contextmanager
def by_ipc(side: Side, _: Path) -> Iterator[Carry]:
    port: list[Any] = [None]
    if side.rank == 0:
        with Listener(("127.0.0.1", 0)) as listener:
            port = [listener.address[1]]
            dist.broadcast_object_list(port, src=0)
            wire = listener.accept()
    else:
        dist.broadcast_object_list(port, src=0)
        wire = Client(("127.0.0.1", port[0]))

    def carry(version: int, side: Side) -> None:
        if side.rank == 0:
            ipc.send(wire, side.named, side.limit)
        else:
            take(side, version, ipc.receive(wire))

    yield carry
    wire.close()


@contextmanager
def by_folder(side: Side, scratch: Path) -> Iterator[Carry]:
    scratch, origin = meeting(side, scratch)

    def carry(version: int, side: Side) -> None:
        if side.rank == 0:
            folders.write(scratch, version, side.named, origin)
        dist.barrier()
        if side.rank == 1:
            take(side, version, folders.named_in(folders.folder_of(scratch, version)))

    yield carry


@contextmanager
def by_delta(side: Side, scratch: Path) -> Iterator[Carry]:
    scratch, origin = meeting(side, scratch)
    writer = DeltaWriter(scratch, origin, encoding="xor", checksum="adler32")
    copy = LocalCopy(scratch / "host")

    def carry(version: int, side: Side) -> None:
        if side.rank == 0:
            writer.write(version, side.named)
        dist.barrier()
        if side.rank == 1:
            sent = folders.folder_of(scratch, version)
            take(side, version, folders.named_in(copy.follow(sent)))

    yield carry


def meeting(side: Side, scratch: Path) -> tuple[Path, Path]:
    """The first process's folder, and one in it with the model's config alone."""
    shape = side.decoder.shape
    where = [str(scratch)]
    dist.broadcast_object_list(where, src=0)
    origin = Path(where[0]) / "origin"
    if side.rank == 0:
        origin.mkdir()
        config = {
            "model_type": "qwen3",
            "vocab_size": shape.vocab,
            "hidden_size": shape.width,
            "intermediate_size": shape.ffn,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_key_heads,
            "head_dim": shape.head_size,
            "max_position_embeddings": shape.max_positions,
            "rms_norm_eps": shape.eps,
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": shape.tied,
        }
        (origin / "config.json").write_text(json.dumps(config))
    return origin.parent, origin


CARRIERS = {"group": by_group, "ipc": by_ipc, "folder": by_folder, "delta": by_delta}


if __name__ == "__main__":
    main()
