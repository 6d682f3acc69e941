"""How new weights reach the servers: by handle, through a process group, or through a folder."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tandem.carriers.buckets import Bucket, buckets, tensors_of
from tandem.engine.sglang.buckets import handle_of
from tandem.engine.sglang.fleet import Fleet
from tandem.engine.sglang.groups import Group
from tandem.engine.sglang.line import Line
from tandem.engine.sglang.server import Server
from tandem.errors import EngineError, SyncError
from tandem.types import Weights

INDEX = "model.safetensors.index.json"


class HandleCarrier:
    """Hands over buckets: on a GPU that trainer and server share (or that are peers on one host)
    the server reads the trainer's buffer by CUDA IPC; tensors on the CPU go by value."""

    def __init__(self, line: Line, bucket_bytes: int) -> None:
        self._line, self._bucket_bytes = line, bucket_bytes

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError."""
        is_cuda = False
        for bucket in buckets(weights.named, self._bucket_bytes):
            is_cuda = bucket.flat.is_cuda
            if is_cuda:
                torch.cuda.synchronize(bucket.flat.device)  # the handle says nothing of streams
            pending = [self._line.start(self._give(server, bucket)) for server in servers]
            for future in pending:
                future.result()
        if is_cuda:
            torch.cuda.ipc_collect()  # buffers that the servers have let go of

    async def _give(self, server: Server, bucket: Bucket) -> None:
        body = {
            "serialized_named_tensors": [handle_of(bucket) for _ in range(server.num_ranks)],
            "load_format": "flattened_bucket",
            "flush_cache": False,
        }
        await server.update("/update_weights_from_tensor", body)

    def close(self) -> None:
        """Nothing is held."""


class GroupCarrier:
    """Broadcasts buckets to servers on other devices, in a process group of trainer and servers."""

    def __init__(self, line: Line, bucket_bytes: int, *, backend: str, host: str) -> None:
        """`backend`: nccl or gloo; `host`: the address at which servers reach the trainer."""
        self._line, self._bucket_bytes = line, bucket_bytes
        self._backend, self._host = backend, host
        self._group: Group | None = None
        self._urls: list[str] = []
        if backend == "nccl":
            # both sides of a group must agree on it, and SGLang sets 0
            os.environ.setdefault("NCCL_CUMEM_ENABLE", "0")

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError."""
        group = self._joined(servers)
        for bucket in buckets(weights.named, self._bucket_bytes):
            form = bucket.form
            body = {
                "names": form.names,
                "dtypes": [form.dtype_name] * len(form.names),
                "shapes": [list(shape) for shape in form.shapes],
                "group_name": group.name,
                "load_format": "flattened_bucket",
                "flush_cache": False,
            }
            path = "/update_weights_from_distributed"
            pending = [self._line.start(server.update(path, body)) for server in servers]
            work = group.broadcast(bucket.flat)
            _wait_for(pending)
            work.wait()

    def close(self) -> None:
        """Leaves the group; servers leave it with their end."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _joined(self, servers: Sequence[Server]) -> Group:
        """A group with exactly these servers, made anew when one of them has another address."""
        urls = [server.url for server in servers]
        if self._group is not None and urls == self._urls:
            return self._group
        self.close()
        group = Group(self._backend, self._host, 1 + sum(one.num_ranks for one in servers))
        pending, rank = [], 1
        for server in servers:
            body = group.invitation() | {"rank_offset": rank}
            pending.append(self._line.start(server.update("/init_weights_update_group", body)))
            rank += server.num_ranks
        joining = group.join()
        _wait_for([*pending, joining])
        self._group, self._urls = group, urls
        return group


class FolderCarrier:
    """Writes a Hugging Face folder of every version, which servers on any host read."""

    def __init__(
        self,
        line: Line,
        bucket_bytes: int,
        folder: Path,
        *,
        model: Path,
        keeps: bool,
        after: Callable[[Path], None] | None = None,
    ) -> None:
        """`model`: the folder with config and tokenizer; `after(folder)`: once files are there."""
        self._line, self._bucket_bytes, self._folder = line, bucket_bytes, folder
        self._model, self._keeps, self._after = model, keeps, after

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError."""
        version = self._folder / f"weight_v{weights.version:06d}"
        self._write(version, weights)
        if self._after is not None:
            self._after(version)
        # the server's own format is `dummy`: its weights come with the first update
        body = {"model_path": str(version), "load_format": "auto", "flush_cache": False}
        pending = [
            self._line.start(server.update("/update_weights_from_disk", body)) for server in servers
        ]
        _wait_for(pending)
        if not self._keeps:
            shutil.rmtree(version)

    def close(self) -> None:
        """Nothing is held."""

    def _write(self, folder: Path, weights: Weights) -> None:
        """The folder, visible once it is whole."""
        partial = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in self._model.iterdir():
            if path.is_file() and not path.name.startswith("model"):
                shutil.copy(path, partial)
        where: dict[str, str] = {}
        for number, bucket in enumerate(buckets(weights.named, self._bucket_bytes)):
            file = f"model-{number:05d}.safetensors"
            on_host = replace(bucket, flat=bucket.flat.cpu())
            save_file(dict(tensors_of(on_host)), partial / file, metadata={"format": "pt"})
            where |= dict.fromkeys(bucket.form.names, file)
        (partial / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


class SglangSync:
    """Publishes weights to all servers of a fleet, and proves that they arrived.

    A server does not show its tensors, so the proof is its version, read back, and the log-probs
    of a canary through the path that samples.
    """

    def __init__(
        self,
        fleet: Fleet,
        failures_of: Callable[[Any, str, Weights, str], list[str]],
        *,
        dtype: str,
        again: Callable[[int], Weights] | None = None,
    ) -> None:
        """`failures_of(engine, name, weights, dtype)`: what is wrong after an update.

        `again(version)`: the weights of the last update once more, while the trainer still has
        them; they bring back a server that died.
        """
        self._fleet, self._failures_of, self._dtype, self._again = fleet, failures_of, dtype, again

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Seconds of the update and of its check; raises SyncError naming servers that missed it.

        All servers or none: after the error none of them samples.
        """
        sent = replace(weights, is_shared=False, digests=None)
        started_s = updated_s = time.perf_counter()

        def check() -> None:
            nonlocal updated_s
            updated_s = time.perf_counter()
            failures = [
                failure
                for witness in self._fleet.witnesses()
                for failure in self._failures_of(witness, witness.name, sent, self._dtype)
            ]
            if failures:
                raise SyncError("it did not arrive as it was sent: " + "; ".join(failures))

        self._fleet.update(sent, check)
        again, version = self._again, weights.version
        self._fleet.remember(None if again is None else lambda: again(version))
        checked_s = time.perf_counter()
        return {
            "perf/update_weights_time": checked_s - started_s,
            "perf/update_weights_check_time": checked_s - updated_s,
        }


def _wait_for(pending: "Sequence[Future[Any]]") -> None:
    """Waits until all are done; raises EngineError at the first that fails, whatever hangs then."""
    left = list(pending)
    while left:
        for future in [one for one in left if one.done()]:
            left.remove(future)
            error = future.exception()
            if error is not None:
                raise error if isinstance(error, EngineError) else EngineError(str(error))
        time.sleep(0.0005)
