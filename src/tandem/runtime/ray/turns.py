"""Whose turn it is on devices that ranks and engines share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tandem.loop import Devices

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


class Ranks(Protocol):
    """What trains."""

    def trim(self) -> None:
        """Gives back what the ranks hold of their devices and do not use."""


class Engines(Protocol):
    """What samples."""

    def forget(self) -> None:
        """Drops cached prefixes of every engine."""

    def sleep(self) -> None:
        """Gives the caches' memory back."""

    def wake(self) -> None:
        """Makes the caches again."""

    def is_busy(self) -> bool:
        """Whether requests are live."""

    def memories(self) -> Sequence[Memory]:
        """Of each engine's device."""


class Turns:
    """Has the caches sleep while the ranks train, until it has seen that there is room for both.

    The first round and the training after it are measured: what sleeping gave back must fit into
    what training left free at its most (torch keeps that much), and a tenth of the device beside
    it. From then on nothing is moved, unless training grows into that tenth.
    """

    def __init__(self, ranks: Ranks, engines: Engines, say: Callable[[str], None]) -> None:
        """`say` takes a sentence about memory."""
        self._ranks, self._engines, self._say = ranks, engines, say
        self._caches: list[int] | None = None  # bytes that sleeping gave back
        self._has_trained = False  # since the caches fell asleep
        self._stays = False  # the caches are there while ranks train

    def devices(self) -> Devices:
        """The contexts that the loop does its work in."""
        return Devices(sampling=self.sampling, learning=self.learning)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Takes note that memory was used."""
        yield
        self._has_trained = True

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The caches are there and as new."""
        if self._has_trained:
            self._decide()
        if not self._stays:
            self._ranks.trim()
        self._engines.wake()
        self._engines.forget()
        try:
            yield
        finally:
            if not self._stays and not self._engines.is_busy():
                self._sleep()

    def _sleep(self) -> None:
        if self._caches is not None:
            self._engines.sleep()
            return
        before = self._engines.memories()
        self._engines.sleep()
        after = self._engines.memories()
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
        now = self._engines.memories()
        caches = [0] * len(now) if self._stays else self._caches
        has_room = all(
            one.free - cache >= SPARE * one.total for one, cache in zip(now, caches, strict=True)
        )
        self._has_trained = False
        if not self._stays:
            how = "stay beside training from now on" if has_room else "sleep while ranks train"
            self._say(f"memory of shared devices after training: {_listed(now)}; caches {how}")
        elif not has_room:
            self._say(f"training has grown: {_listed(now)}; caches sleep while ranks train")
        self._stays = has_room


def _listed(memories: Sequence[Memory]) -> str:
    return ", ".join(map(str, memories))
