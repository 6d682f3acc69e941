"""The rules of one round of sampling: what is kept, when more is fetched, when sampling stops.

They know no engine, no reward and no clock: groups are numbers, in the order they were started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Order = Literal["finished", "prompts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """What a filter says of a judged group."""

    reason: str | None = None  # None: keep it
    is_fallback: bool = False  # keep it all the same if others would have to be sampled for it


KEEP = Ruling()


class Round:
    """Which groups of a round are kept.

    Rulings count in the order in which groups finished sampling, however late a judge is. `order`
    says which of the accepted are kept: the first to finish, or the first that were started (then
    a group waits for all that were started before it). Without a filter a group is accepted when
    it finishes.
    """

    def __init__(
        self, wanted: int, *, order: Order = "finished", filters: bool, saves: bool = False
    ) -> None:
        """`saves`: what is cut off by the end of sampling is continued later, so where that end
        lies matters."""
        self._wanted = wanted
        self._order = order
        self._filters = filters
        self._saves = saves
        self._started: list[int] = []
        self._finished: list[int] = []
        self._rulings: dict[int, Ruling] = {}
        self._num_counted = 0  # of the finished, from the first one on
        self._accepted: dict[int, None] = {}  # in the order their rulings counted
        self._dropped: dict[int, str] = {}
        self._kept: tuple[int, ...] | None = None

    @property
    def is_full(self) -> bool:
        """Whether sampling has to stop: all that is wanted is kept. Nothing counts after it."""
        return self._kept is not None

    @property
    def kept(self) -> tuple[int, ...]:
        """The groups to train on, as they were started."""
        assert self._kept is not None, "asked what is kept before the round was full"
        return self._kept

    @property
    def dropped(self) -> Mapping[int, str]:
        """Reason by group, of those that a filter refused before the round was full."""
        return self._dropped

    @property
    def wants_more(self) -> bool:
        """Whether those kept and in flight cannot reach what is wanted."""
        return not self.is_full and len(self._started) - len(self._dropped) < self._wanted

    @property
    def hangs_on_judges(self) -> bool:
        """Whether a ruling that is due could fetch more groups or, where it matters, end sampling.

        As long as it is False the engine may go on without changing what this round gives.
        """
        num_due = len(self._finished) - self._num_counted
        if self.is_full or num_due == 0:
            return False
        may_fetch = len(self._started) - len(self._dropped) - num_due < self._wanted
        due = dict.fromkeys(self._finished[self._num_counted :])
        may_end = self._saves and len(self._first({**self._accepted, **due})) >= self._wanted
        return may_fetch or may_end

    def start(self, groups: Sequence[int]) -> None:
        """More groups are being sampled."""
        self._started.extend(groups)

    def finish(self, group: int) -> None:
        """All samples of a group have ended."""
        self._finished.append(group)
        if not self._filters:
            self.rule(group, KEEP)

    def rule(self, group: int, ruling: Ruling) -> None:
        """The filter has spoken on a finished group."""
        self._rulings[group] = ruling
        while self._num_counted < len(self._finished) and not self.is_full:
            head = self._finished[self._num_counted]
            if head not in self._rulings:
                return
            self._num_counted += 1
            self._count(head, self._rulings[head])

    def _count(self, group: int, ruling: Ruling) -> None:
        is_scarce = len(self._started) - len(self._dropped) <= self._wanted
        if ruling.reason is None or (ruling.is_fallback and is_scarce):
            self._accepted[group] = None
        else:
            self._dropped[group] = ruling.reason
        first = self._first(self._accepted)
        if len(first) >= self._wanted:
            kept = set(first[: self._wanted])
            self._kept = tuple(group for group in self._started if group in kept)

    def _first(self, accepted: Mapping[int, None]) -> list[int]:
        """The accepted groups in the order of keeping, up to the first that is still open."""
        if self._order == "finished":
            return list(accepted)
        first = []
        for group in self._started:
            if group in accepted:
                first.append(group)
            elif group not in self._dropped:
                break
        return first
