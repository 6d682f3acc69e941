"""The embedded engine of one process: what it builds of a recipe, and the verbs of a fleet."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tandem.carriers.group import Member
from tandem.checkpoint.names import to_hugging_face
from tandem.data import load_tokenizer
from tandem.engine.torch.engine import TorchEngine
from tandem.errors import SyncError
from tandem.models.build import dtype_of
from tandem.models.decoder import Decoder
from tandem.runtime.building import device_of
from tandem.runtime.ray.ends import Receiver
from tandem.runtime.ray.mailbox import Answer, Mailbox
from tandem.runtime.ray.rank import Recipe
from tandem.runtime.ray.turns import Memory
from tandem.runtime.weights import fill
from tandem.types import EngineStats, Request, Weights


class EngineSide:
    """Owns an engine and, where no rank lends one, its decoder."""

    def __init__(self, recipe: Recipe, decoder: Decoder | None, version: int) -> None:
        """An engine of its own starts without weights, unless nobody is there to send them."""
        cfg = recipe.cfg
        self._device = device = device_of(cfg)
        folder = cfg.model.hf_checkpoint
        assert folder is not None, "rules refuse a run without --hf-checkpoint"
        if decoder is None:
            decoder = Decoder(recipe.shape, dtype_of(cfg.model.dtype, device), device)
            decoder.requires_grad_(False)
            if cfg.debug.debug_rollout_only:
                fill(decoder, recipe.found, cfg.debug.seed)
        self.decoder = decoder
        tokenizer, eos = load_tokenizer(folder), recipe.shape.eos_token_ids
        self._engine = TorchEngine(
            decoder,
            tokenizer,
            cfg.engine,
            device,
            eos,
            version=version,
            records_experts=cfg.algo.use_rollout_routing_replay,
        )
        self._mailbox = Mailbox(self._engine)
        self._receiver = Receiver(cfg, device)

    @property
    def has_work(self) -> bool:
        """Whether requests are live; may be asked from another thread."""
        stats = self._engine.stats()
        return stats.num_running + stats.num_waiting > 0

    def ask(self, requests: Sequence[Request]) -> None:
        """Queues the requests."""
        self._mailbox.ask(requests)

    async def take(self) -> list[Answer]:
        """What has been answered since the last call; waits until there is something."""
        return await self._mailbox.take()

    async def abort(self, ids: Sequence[str] | None) -> None:
        """Ends the named requests, or all; their answers are to be taken as others are."""
        await self._engine.abort(ids)

    def named(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """The weights of this version by Hugging Face name; SyncError if it has others."""
        held = self._engine.stats().version
        if held != version:
            raise SyncError(f"weights {version} are wanted of an engine that has {held}")
        named = ((name, tensor.detach()) for name, tensor in self.decoder.named_parameters())
        return to_hugging_face(self.decoder.shape, named)

    def update(self, version: int, named: Iterable[tuple[str, Tensor]], *, is_shared: bool) -> None:
        """Takes weights, or the news that they have changed where they lie."""
        self._engine.update(Weights(version=version, named=named, is_shared=is_shared))

    def receive(self, version: int, member: Member) -> None:
        """Takes weights from a process group."""
        self.update(version, self._receiver.from_group(version, member), is_shared=False)

    def read(self, version: int, folder: str) -> None:
        """Takes weights from a folder."""
        self.update(version, self._receiver.from_folder(Path(folder)), is_shared=False)

    def took(self, version: int) -> None:
        """Takes note of weights that came past the carrier."""
        self._receiver.took(version, self.named(version))

    def give_up(self, port: int) -> None:
        """Ends what is being received from the group that meets at this port."""
        self._receiver.group.give_up(port)

    def forget(self) -> None:
        """Drops cached prefixes."""
        self._engine.forget()

    def sleep(self) -> None:
        """Gives the cache's memory back."""
        self._engine.sleep()

    def wake(self) -> None:
        """Makes the cache again."""
        self._engine.wake()

    def memory(self) -> Memory:
        """Of its device."""
        free, total = torch.cuda.mem_get_info(self._device)
        return Memory(free=free, total=total)

    def stats(self) -> EngineStats:
        """What it does now, and counts since it was made."""
        return self._engine.stats()

    def state_digest(self, as_stored: bool) -> Mapping[str, int]:
        """A digest of every tensor that it samples with."""
        return self._engine.state_digest(as_stored=as_stored)

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """Log-probs of a fixed sequence through the path that samples."""
        return self._engine.canary(tokens_T)

    def close(self) -> None:
        """Fails what is live and gives everything back."""
        self._receiver.group.close()
        self._engine.close()
