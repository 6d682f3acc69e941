"""Whose turn it is on devices that a trainer and its engines share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from tandem.loop import Devices
from tandem.types import EngineStats

SPARE = 0.1
"""Share of a device that must stay free before caches are left there while ranks train: a later
round may have longer rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """A device's memory, in bytes, as its driver counts it: of all processes."""

    free: int
    total: int

    def __str__(self) -> str:
        return f"{self.free / 2**30:.2f} of {self.total / 2**30:.2f} GiB free"


def memory_of(device: torch.device) -> Memory:
    """What the driver says now."""
    free, total = torch.cuda.mem_get_info(device)
    return Memory(free=free, total=total)


def least_memory_of(device: torch.device) -> Memory:
    """What was free when torch held most of the device for this process; it may have given it back.

    What other processes hold is counted as it is now.
    """
    now = memory_of(device)
    held, most = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    return Memory(free=max(0, now.free + held - most), total=now.total)


class Ranks(Protocol):
    """What trains."""

    @property
    def is_asleep(self) -> bool:
        """Whether the optimizers' state waits in host memory."""

    def trim(self) -> None:
        """Gives back what is held of the devices and not used."""

    def sleep(self) -> None:
        """Has the optimizers' state wait in host memory, and trims."""

    def wake(self) -> None:
        """Has the optimizers' state come back."""


class Engines(Protocol):
    """What samples."""

    def forget(self) -> None:
        """Drops cached prefixes of every engine."""

    def sleep(self) -> None:
        """Gives the caches' memory back."""

    def wake(self) -> None:
        """Makes the caches again."""

    def stats(self) -> EngineStats:
        """How many requests are live, among other things."""


@contextmanager
def afresh(engines: Engines) -> Iterator[None]:
    """Engines forget cached prefixes before each round.

    What an evaluation left there would change the rounding of the rollout that follows it, and a
    run that resumes between the two has no such prefixes.
    """
    engines.forget()
    yield


class Turns:
    """Has caches sleep while ranks train, until it has seen that there is room for both.

    The first round and the training after it are measured: what sleeping gave back must fit into
    what training left free at its most, and a tenth of the device beside it. From then on nothing
    is moved, unless training grows into that tenth.

    Where optimizer state waits in host memory while engines sample (`moves_state`), there is no
    such room: each side gives way in turn.
    """

    def __init__(
        self,
        ranks: Ranks,
        engines: Engines,
        say: Callable[[str], None],
        *,
        measure: Callable[[], Sequence[Memory]],
        least: Callable[[], Sequence[Memory]],
        caches_sleep: bool = True,
        moves_state: bool = False,
    ) -> None:
        """`say` takes a sentence about memory; `measure` gives that of each engine's device.

        `least` gives that of each rank's device when the rank held most of it.

        Without `caches_sleep` caches are there all the time.
        """
        self._ranks, self._engines, self._say = ranks, engines, say
        self._measure, self._least, self._moves_state = measure, least, moves_state
        self._caches: list[int] | None = None  # bytes that sleeping gave back
        self._has_trained = False  # since the caches fell asleep
        self._is_settled = not caches_sleep  # by a flag, not by what was measured
        self._stays = self._is_settled  # the caches are there while ranks train

    def devices(self) -> Devices:
        """The contexts that the loop does its work in."""
        return Devices(sampling=self.sampling, learning=self.learning)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The optimizer's state is there or on its way; takes note that memory was used."""
        if self._moves_state:
            self._ranks.wake()
        yield
        self._has_trained = True

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The caches are there and as new."""
        if self._has_trained and not (self._moves_state or self._is_settled):
            self._decide()
        if self._moves_state:
            self._ranks.sleep()
        elif not self._stays:
            self._ranks.trim()
        if not self._is_settled:
            self._engines.wake()
        self._engines.forget()
        try:
            yield
        finally:
            stats = self._engines.stats()
            if not (self._stays or stats.num_running or stats.num_waiting):
                self._sleep()

    def _sleep(self) -> None:
        if self._caches is not None:
            self._engines.sleep()
            return
        before = self._measure()
        self._engines.sleep()
        after = self._measure()
        self._caches = [
            asleep.free - awake.free for asleep, awake in zip(after, before, strict=True)
        ]
        self._has_trained = False
        self._say(
            f"memory of shared devices: while engines sample {_listed(before)}; once their caches "
            f"sleep {_listed(after)}"
        )

    def _decide(self) -> None:
        """Whether caches stay; measured once training has taken what it takes."""
        if self._caches is None:
            return
        least = self._least()
        cache = 0 if self._stays else max(self._caches, default=0)
        has_room = all(one.free - cache >= SPARE * one.total for one in least)
        self._has_trained = False
        if not self._stays:
            how = "stay beside training from now on" if has_room else "sleep while ranks train"
            self._say(f"memory of shared devices in training: {_listed(least)}; caches {how}")
        elif not has_room:
            self._say(f"training has grown: {_listed(least)}; caches sleep while ranks train")
        self._stays = has_room


def _listed(memories: Sequence[Memory]) -> str:
    return ", ".join(map(str, memories))
