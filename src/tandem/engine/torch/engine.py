"""The embedded engine: continuous batching over a paged cache, in the trainer's own process."""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem.carriers.digested import digests_of
from tandem.checkpoint.names import from_hugging_face, to_hugging_face
from tandem.config import EngineConfig
from tandem.engine.torch.core import Core
from tandem.engine.torch.lockstep import Wire
from tandem.engine.torch.memory import num_cache_blocks
from tandem.engine.torch.runner import Runner
from tandem.engine.torch.sequence import Deliver
from tandem.engine.torch.stops import Decodes, Stops
from tandem.errors import CheckpointError, EngineError, SyncError
from tandem.kernels.digest import start_digests
from tandem.models.decoder import Decoder
from tandem.models.part import gather_whole
from tandem.types import Completion, EngineStats, Request, Weights

log = logging.getLogger(__name__)


class TorchEngine:
    """Samples with the decoder it is given, whose tensors it reads and never copies.

    It lives in one thread: `add` queues a request, and a task on the running event loop calls
    `step` while there is work, letting other tasks run after each step. The tokens of a request
    are a function of its own tokens, its key and the weights: not of batching, order, timing or
    preemption (but for the rounding of logits, which batching can change outside deterministic
    mode). What a step computes is a function of the order of calls.

    A step that raises fails every live request with EngineError and leaves the engine empty and
    usable: it only reads the weights, and all else is made anew.

    `is_late` is for devices that work while the host goes on: tokens are read one step late.

    Where tensor ranks share the decoder, each has such an engine: the first is asked, and tells the
    others over its `wire`, see `lockstep`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Decodes | None,
        cfg: EngineConfig,
        device: torch.device | str,
        eos_token_ids: Sequence[int],
        *,
        version: int = 0,
        is_late: bool | None = None,
        records_experts: bool = False,
        wire: Wire | None = None,
    ) -> None:
        """`records_experts`: completions say which experts every token passed through."""
        device, part = torch.device(device), decoder.part
        assert part.is_first and part.is_last, "an engine runs every layer"
        _check_experts(decoder, device)
        decoder = decoder.for_sampling()
        tensor = part.mesh.tensor
        self._decoder, self._wire = decoder, wire
        self._runner = Runner(
            decoder,
            num_blocks=num_cache_blocks(
                cfg, decoder.shape, decoder.dtype, device, records_experts, tensor
            ),
            block_size=cfg.engine_block_size,
            num_slots=cfg.engine_max_running,
            device=device,
            is_deterministic=cfg.deterministic_mode,
            records_experts=records_experts,
        )
        self._core = Core(
            self._runner,
            Stops(tokenizer, eos_token_ids),
            num_slots=cfg.engine_max_running,
            prefill_tokens=cfg.engine_prefill_tokens,
            version=version,
            is_late=device.type == "cuda" if is_late is None else is_late,
        )
        self._pump_task: asyncio.Task[None] | None = None
        self._may_step = asyncio.Event()
        self._may_step.set()
        self._is_closed = False

    @property
    def num_preempted(self) -> int:
        """How often a sequence lost its blocks to an earlier one and had to compute them again."""
        return self._core.scheduler.num_preempted

    def add(self, request: Request) -> Awaitable[Completion]:
        """A future of the request's completion; the request is queued before this returns.

        Wants a running event loop. Raises EngineError for what can never be served. Cancelling the
        future ends the request.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()

        def deliver(done: Completion | Exception) -> None:
            if future.done():
                return
            if isinstance(done, Exception):
                future.set_exception(done)
            else:
                future.set_result(done)

        def drop_if_cancelled(future: asyncio.Future[Completion]) -> None:
            if future.cancelled():
                self.drop({request.id})

        self.put(request, deliver)
        future.add_done_callback(drop_if_cancelled)
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = loop.create_task(self._pump())
        return future

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of these requests, in their order, without an event loop."""
        given: list[Completion | Exception | None] = [None] * len(requests)
        for place, request in enumerate(requests):
            self.put(request, partial(given.__setitem__, place))
        while self._core.has_work:
            self.step()
        completions = []
        for done in given:
            if isinstance(done, Exception):
                raise done
            assert done is not None, "the engine is idle, yet a request has no completion"
            completions.append(done)
        return completions

    def step(self) -> None:
        """Does one step of all that is live; see the class for what happens when it raises."""
        self._say("step")
        try:
            self._core.step()
        except Exception as error:
            log.exception("a step of the engine raised; every live request fails")
            self._note("drop", None)
            self._core.fail(
                f"a step of the engine raised {type(error).__name__}: {error}. All live requests "
                "failed with it; the engine is empty and can be used again",
                error,
            )

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """Ends the named requests, or all; their futures resolve with ABORT and what they wrote.

        Tokens of launched work count, so nothing is lost. Ids that are not live are ignored.
        """
        self.drop(None if ids is None else set(ids))

    def drop(self, ids: set[str] | None) -> None:
        """Does what `abort` does, where nobody waits."""
        self._note("drop", ids)
        self._core.abort(ids)

    def hold(self) -> None:
        """Takes no further step on the event loop until `release`; requests may come and go."""
        self._may_step.clear()

    def release(self) -> None:
        """Goes on after `hold`; nothing if it was not held."""
        self._may_step.set()

    def update(self, weights: Weights) -> None:
        """Takes new weights; later tokens carry their version, cached prefixes are dropped.

        Shared weights are in place already. Others are copied by Hugging Face name into the
        decoder's own tensors; SyncError if one is unknown, missing or of another size. Running
        sequences keep the keys and values that they have: those are of the version they were
        computed by, and `version_C` says for each token which weights chose it.
        """
        self._core.drain()
        if self._wire is not None:
            weights = self._wire.share(weights)
        if not weights.is_shared:
            self._copy(weights)
        self._core.version = weights.version
        self._core.forget()

    def forget(self) -> None:
        """Drops cached prefixes; an idle engine is then as new, so what it computes next depends
        on nothing before."""
        self._note("forget")
        self._core.forget()

    def sleep(self) -> None:
        """Gives the cache's memory back; EngineError while requests are live."""
        if self._core.has_work:
            raise EngineError("the engine cannot sleep while requests are live; abort them first")
        self._say("sleep")
        self._core.forget()
        self._runner.release()

    def wake(self) -> None:
        """Makes the cache again; nothing if it is there."""
        self._say("wake")
        self._runner.allocate()

    def stats(self) -> EngineStats:
        """What it does now, and counts since it was made."""
        core = self._core
        return EngineStats(
            version=core.version,
            num_running=core.scheduler.num_running,
            num_waiting=len(core.scheduler.waiting),
            num_cache_blocks=core.pool.num_blocks,
            num_free_blocks=core.pool.num_available,
            num_generated_tokens=core.num_generated,
            num_prefill_tokens=core.num_prefilled,
            num_cached_tokens=core.num_cached,
            is_asleep=not self._runner.is_allocated,
        )

    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor it samples with, in place, by the decoder's own name."""
        return dict(self._decoder.named_parameters())

    def state_digest(self, *, as_stored: bool = False) -> Mapping[str, int]:
        """A digest of every tensor it samples with, by Hugging Face name, or as it is stored.

        Those of tensors in place may be read later.
        """
        if as_stored and self._decoder.part.mesh.sizes.is_whole:
            return start_digests(self.tensors().items())
        return digests_of(self.named(as_stored=as_stored))

    def named(self, *, as_stored: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every tensor it samples with, whole, by Hugging Face name, or as it is stored.

        Several ranks gather one at a time, before the next step: all of them must be taken.
        """
        self._say("walk")
        whole = self._whole()
        yield from whole if as_stored else to_hugging_face(self._decoder.shape, whole)

    def walk(self) -> None:
        """Takes this rank's part in the first rank's `named`."""
        for _ in self._whole():
            pass

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        shards, mesh = self._decoder.shards(), self._decoder.part.mesh
        for name, parameter in self._decoder.named_parameters():
            tensor = parameter.detach()
            yield name, tensor if mesh.sizes.is_whole else gather_whole(tensor, shards[name], mesh)

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """The log-prob of each token given those before it, `[T]`, 0 at the first; through the
        paged path, at temperature 1, beside whatever runs."""
        self._say("canary", tokens_T)
        return self._runner.logprobs(tokens_T)

    def close(self) -> None:
        """Fails what is live and gives the cache's memory back; nothing can be added after."""
        if self._is_closed:
            return
        self._is_closed = True
        self._say("close")
        self._core.fail("the engine was closed")
        self._runner.close()

    async def _pump(self) -> None:
        """Takes requests, gives completions; waits for its turn, and while it is held; woken by
        `add` and `release`."""
        try:
            while self._core.has_work:
                if self._may_step.is_set():
                    self.step()
                    await asyncio.sleep(0)
                else:
                    await self._may_step.wait()
        except asyncio.CancelledError:
            # the loop is closing, and with it everybody who waits for these
            self.drop(None)
            raise

    def put(self, request: Request, deliver: Deliver) -> None:
        """Queues a request, whose completion or failure goes to `deliver`; raises EngineError."""
        if self._is_closed:
            raise EngineError(f"request {request.id} came after the engine was closed")
        if not self._runner.is_allocated:
            raise EngineError(f"request {request.id} came while the engine sleeps; wake it first")
        self._core.queue(request, deliver)
        self._note("put", request)

    def _note(self, name: str, *args: Any) -> None:
        if self._wire is not None:
            self._wire.note(name, *args)

    def _say(self, name: str, *args: Any) -> None:
        if self._wire is not None:
            self._wire.say(name, *args)

    @torch.no_grad()
    def _copy(self, weights: Weights) -> None:
        mine = dict(self._decoder.named_parameters())
        missing, shards = set(mine), self._decoder.shards()
        try:
            for name, tensor in from_hugging_face(self._decoder.shape, weights.named):
                wanted = shards[name].global_shape if name in mine else None
                if wanted is None or wanted != tuple(tensor.shape):
                    size = wanted if name in mine else "no such tensor"
                    raise SyncError(
                        f"weight update {weights.version} brought {name} of size "
                        f"{tuple(tensor.shape)}, this engine has {size}; is it the same model?"
                    )
                mine[name].copy_(shards[name].of(tensor))
                missing.discard(name)
        except CheckpointError as error:
            raise SyncError(f"weight update {weights.version}: {error}") from error
        if missing:
            raise SyncError(
                f"weight update {weights.version} lacks {len(missing)} tensors, first "
                f"{min(missing)}; the engine now holds a mixture and must be updated again"
            )


def _check_experts(decoder: Decoder, device: torch.device) -> None:
    """Passes if the experts of the decoder, if it has any, can sample here; else EngineError."""
    if decoder.shape.mixture is None:
        return
    sizes = decoder.part.mesh.sizes
    ranks = sizes.expert * sizes.expert_tensor
    if ranks not in (1, sizes.tensor):
        raise EngineError(
            f"experts are divided over {ranks} ranks and an engine has {sizes.tensor}; set "
            "--expert-model-parallel-size x --expert-tensor-parallel-size to "
            "--tensor-model-parallel-size, or give engines their own devices"
        )
    if device.type == "cuda" and decoder.dtype != torch.bfloat16:
        raise EngineError(
            f"experts sample in bf16 on CUDA, not in {decoder.dtype}: only then does nothing wait "
            "for the device; set --dtype bf16, or --rollout-engine sglang"
        )
