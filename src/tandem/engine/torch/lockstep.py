"""One engine on several ranks that share its matrices: all do the same calls in the same order.

What an engine computes is a function of the order of its calls, so the ranks need to agree on
nothing else: the first rank's engine is the one that is asked, and each of its steps tells the
others what was asked since the last one. Logits are gathered and tokens drawn by counter-based
keys, so every rank draws the same tokens, and none has to be told them.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.errors import SyncError
from tandem.parallel.collectives import broadcast_
from tandem.parallel.mesh import Axis, Mesh, axis_groups
from tandem.types import Completion, Weights

if TYPE_CHECKING:
    from tandem.engine.torch.engine import TorchEngine

Call = tuple[str, tuple[Any, ...]]
"""The name of what is done, and its arguments."""

IDLE = timedelta(days=30)
"""A follower may wait for its next call as long as a step of training takes, or a debugger."""

FIRST_BYTES = 4096
"""Of a message that goes at once, its length in front; only a longer one needs another."""


def open_wire(mesh: Mesh, device: torch.device) -> "Wire":
    """The wire between the ranks of this process's tensor axis; every process of the world calls.

    Calls travel over gloo, between hosts, whatever the devices are; weights over the axis itself.
    """
    calls = Axis(ranks=(mesh.rank,))
    for ranks in axis_groups("tensor", mesh.sizes):
        group = dist.new_group(ranks, backend="gloo", timeout=IDLE)
        if mesh.rank in ranks:
            calls = replace(mesh.tensor, group=group)
    return Wire(calls, mesh.tensor, device)


class Wire:
    """Carries calls, and tensors between them, from the first rank to the others.

    The first rank's engine is given the wire. The others call `follow` with engines like it, which
    are given none.
    """

    def __init__(self, calls: Axis, weights: Axis, device: torch.device) -> None:
        self._calls, self._weights, self._device = calls, weights, device
        self._noted: list[Call] = []

    def note(self, name: str, *args: Any) -> None:
        """Tells the others of a call with the next that is said."""
        self._noted.append((name, args))

    def say(self, name: str, *args: Any) -> None:
        """Tells the others of all that was noted and of this call, which they do now."""
        calls, self._noted = [*self._noted, (name, args)], []
        message = pickle.dumps(calls)
        self._broadcast(len(message).to_bytes(8, "little") + message)

    def hear(self) -> list[Call]:
        """What the first rank says next; waits for it."""
        return pickle.loads(self._broadcast(b""))

    def ask(self, own: Any) -> list[Any]:
        """What every rank answers, this one `own`, in the order of the ranks."""
        self.say("answer")
        return self.answer(own)

    def answer(self, own: Any) -> list[Any]:
        """The same, of a rank that was asked."""
        answers = [None] * self._calls.size
        dist.all_gather_object(answers, own, group=self._calls.group)
        return answers

    def rest(self) -> None:
        """Lets the others leave `follow`; what they are to do next waits until they are back."""
        self.say("rest")

    def share(self, weights: Weights) -> Weights:
        """The same weights, of which every tensor also goes to the others as it is read."""
        if weights.is_shared:
            self.note("update", weights.version, True)
            return weights
        self.say("update", weights.version, False)
        return replace(weights, named=self._sent(weights))

    def received(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the first rank reads."""
        while True:
            ((name, args),) = self.hear()
            if name == "end":
                return
            theirs, dtype, shape = args
            yield (
                theirs,
                broadcast_(torch.empty(shape, dtype=dtype, device=self._device), self._weights),
            )

    def _sent(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        try:
            for name, tensor in weights.named:
                self.say("tensor", name, tensor.dtype, tuple(tensor.shape))
                yield name, broadcast_(tensor.to(self._device).contiguous(), self._weights)
        finally:  # a reader that finds a fault stops early
            self.say("end")

    def _broadcast(self, message: bytes) -> bytes:
        first = torch.zeros(FIRST_BYTES, dtype=torch.uint8)
        head = bytearray(message[:FIRST_BYTES])
        if head:
            first[: len(head)] = torch.frombuffer(head, dtype=torch.uint8)
        broadcast_(first, self._calls)
        whole = first.numpy().tobytes()
        size = 8 + int.from_bytes(whole[:8], "little")
        if size > FIRST_BYTES:
            rest = torch.zeros(size - FIRST_BYTES, dtype=torch.uint8)
            if message:
                rest.copy_(torch.frombuffer(bytearray(message[FIRST_BYTES:]), dtype=torch.uint8))
            whole += broadcast_(rest, self._calls).numpy().tobytes()
        return whole[8:size]


def follow(engine: "TorchEngine", wire: Wire, answer: Callable[[], Any] = lambda: None) -> bool:
    """Does what the first rank's engine does; True when that rests, False when it was closed.

    `answer` gives what this rank says when all are asked.

    Takes calls off the wire, gives nothing. Waits for the first rank, and is woken by its calls.
    A call that fails there, as a weight update can, fails here alike and is told of there.
    """
    while True:
        for name, args in wire.hear():
            if name == "rest":
                return True
            if name == "put":
                engine.put(args[0], _unheard)
            elif name == "update":
                _update(engine, wire, *args)
            elif name == "answer":
                wire.answer(answer())
            else:
                getattr(engine, name)(*args)
            if name == "close":
                return False


def _update(engine: "TorchEngine", wire: Wire, version: int, is_shared: bool) -> None:
    named = wire.received()
    try:
        engine.update(Weights(version=version, named=named, is_shared=is_shared))
    except SyncError:
        pass  # the first rank found the same and says so
    finally:
        if not is_shared:
            for _ in named:
                continue


def _unheard(done: Completion | Exception) -> None:
    """The first rank gives the completion to whoever asked."""
