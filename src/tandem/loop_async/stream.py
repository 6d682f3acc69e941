"""Groups sampled without end: training takes a batch of them when it wants one."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tandem.loop_async.background import BackgroundRunner
from tandem.loop_async.staleness import oldest_version, staleness_metrics
from tandem.rollout import Choice, GroupSampler, Supply, Terms
from tandem.rollout.collect import Progress
from tandem.rollout.collection import Outcome
from tandem.rollout.supply import LEFTOVERS
from tandem.types import Group


@dataclass(slots=True)
class _Entry:
    """A group on its way. `since` is the oldest version that may have chosen one of its tokens."""

    number: int  # in the order of starting
    group: Group
    since: int
    is_sampling: bool = True
    finished: int | None = None  # its place in the order of finishing

    def place(self, by_start: bool) -> float:
        """Its place in the order of starting, or of finishing, where the unfinished come last."""
        if by_start:
            return self.number
        return math.inf if self.finished is None else self.finished


class Stream:
    """Keeps groups at work over rounds and over new weights; gives a round when asked for one.

    Takes groups from the supply; gives the Outcome of `collect`; waits for groups to be sampled and
    judged; woken by each that is, by `collect`, and by the end of `paused`.

    A group is started only if a batch within `max_staleness` has a place for it: at version v there
    are never more groups on their way than fill the rounds up to v + max_staleness. And a round
    takes first what would be too old for the next one, waiting for it if it must. So no token is
    trained later than that, and at most max_staleness + 1 rounds of groups are there at once.
    """

    def __init__(
        self,
        supply: Supply,
        groups: GroupSampler,
        terms: Terms,
        choice: Choice,
        *,
        num_rollout: int,
        max_staleness: int,
        runner: BackgroundRunner,
        progress: Progress | None = None,
    ) -> None:
        """`choice.fetch_size` groups are sampled at once at most."""
        self._supply, self._sampler, self._terms, self._choice = supply, groups, terms, choice
        self._num_rollout, self._max_staleness = num_rollout, max_staleness
        self._runner = runner
        self._progress = progress or (lambda done, total: None)
        self._entries: dict[int, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dropped: list[tuple[Group, str]] = []
        self._failure: BaseException | None = None
        self._num_started = self._num_finished = 0
        self._round: int | None = None  # the next round that will be given
        self._woken: asyncio.Event | None = None
        self._clock = _Clock()

    async def collect(self, step: int) -> Outcome:
        """`batch_size` judged groups in the order of prompts, as soon as they are there."""
        if self._round is None:
            self._clock.take()
        self._round, self._woken = step, asyncio.Event()
        asked_s = time.perf_counter()
        self._react()
        while (batch := self._batch(step)) is None:
            if self._failure is not None:
                raise self._failure
            await self._woken.wait()
            self._woken.clear()
        queue_length = len(self._finished())
        for entry in batch:
            del self._entries[entry.number]
        dropped, self._dropped = self._dropped, []
        self._round = step + 1
        self._react()
        kept = tuple(sorted((e.group for e in batch), key=lambda group: group.prompt.index))
        busy_s, idle_s = self._clock.take()
        return Outcome(
            kept=kept,
            dropped=tuple(group for group, _ in dropped),
            leftovers=(),
            reasons=Counter(reason for _, reason in dropped),
            held_s=0.0,
            numbers={
                "rollout/queue_length": float(queue_length),
                "rollout/num_groups_at_work": float(len(self._entries)),
                "perf/sampling_time": busy_s,
                "perf/sampler_idle_time": idle_s,
                "perf/trainer_idle_time": time.perf_counter() - asked_s,
                **staleness_metrics(kept, step),
            },
        )

    @contextmanager
    def paused(self, *, goes_on: bool = True) -> Iterator[None]:
        """Within it no group moves on, so weights may be changed under those that are at work.

        `goes_on`: new weights make room for more groups, which start after it.
        """
        with self._runner.paused():
            yield
        # without staleness nothing overlaps: an evaluation that follows has the engine for itself
        if goes_on and self._max_staleness:
            self._runner.get_loop().call_soon_threadsafe(self._go_on)

    def state(self) -> Mapping[str, Any]:
        """The supply's state; what is on its way counts as waiting there.

        Finished groups wait with their answers and verdicts, the others as they were started.
        """
        with self._runner.paused():
            state = self._supply.state()
            on_their_way = [self._entries[number].group for number in sorted(self._entries)]
        return {**state, LEFTOVERS: (*on_their_way, *state[LEFTOVERS])}

    def _react(self) -> None:
        """Starts as many groups as there is room for, and wakes who waits for a round."""
        count = self._room()
        if count > 0:
            version = self._sampler.door.version
            for group in self._supply.take(count):
                self._start(group, version)
        self._clock.set_busy(any(entry.is_sampling for entry in self._entries.values()))
        if self._woken is not None:
            self._woken.set()

    def _go_on(self) -> None:
        try:
            self._react()
        except Exception as error:  # a source may fail; who asks for the next round hears of it
            self._failure = error

    def _room(self) -> int:
        """How many groups may be started now."""
        if self._round is None:  # nobody asked for a round yet
            return 0
        last = min(self._sampler.door.version + self._max_staleness + 1, self._num_rollout)
        places = (last - self._round) * self._choice.batch_size - len(self._entries)
        at_work = sum(entry.is_sampling for entry in self._entries.values())
        # what waits from before a restart is old already and must be seen at once
        return min(places, max(self._choice.fetch_size - at_work, len(self._supply)))

    def _start(self, group: Group, version: int) -> None:
        oldest = oldest_version(group.samples)
        since = version if oldest is None else min(version, oldest)
        entry = _Entry(self._num_started, group, since)
        self._num_started += 1
        self._entries[entry.number] = entry
        task = asyncio.get_running_loop().create_task(self._one(entry))
        self._tasks.add(task)
        task.add_done_callback(self._notice)

    async def _one(self, entry: _Entry) -> None:
        """Samples a group, has it judged, and lets the filter speak."""
        terms = replace(self._terms, rollout_id=self._round or 0)
        sampled = await self._sampler.sample(entry.group, terms)
        entry.is_sampling = False
        self._react()
        entry.group = await self._sampler.judge(sampled)
        keeps = self._choice.keeps
        ruling = None if keeps is None else keeps(entry.group)
        if ruling is not None and ruling.reason is not None and not ruling.is_fallback:
            del self._entries[entry.number]
            self._dropped.append((entry.group, ruling.reason))
        else:
            entry.finished = self._num_finished
            self._num_finished += 1
            size = self._choice.batch_size
            self._progress(min(len(self._finished()), size), size)
        self._react()

    def _notice(self, task: asyncio.Task[None]) -> None:
        """Hands what a task raised to who waits for a round."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            if self._woken is not None:
                self._woken.set()

    def _finished(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.finished is not None]

    def _batch(self, step: int) -> list[_Entry] | None:
        """What round `step` takes; None as long as it must wait.

        Of the groups whose last chance is round d or one before it, at most (d - step) rounds may
        be left over; beyond that the order of finishing decides, or of starting.
        """
        by_prompts = self._choice.order == "prompts"
        entries = sorted(self._entries.values(), key=lambda e: (e.place(by_prompts), e.number))
        chosen: dict[int, _Entry] = {}
        for ahead in range(self._max_staleness + 1):
            urgent = [e for e in entries if e.since + self._max_staleness <= step + ahead]
            missing = len(urgent) - ahead * self._choice.batch_size
            missing -= sum(e.number in chosen for e in urgent)
            rest = [e for e in urgent if e.number not in chosen]
            chosen |= {e.number: e for e in rest[: max(0, missing)]}
        rest = [e for e in entries if e.number not in chosen]
        batch = [*chosen.values(), *rest][: self._choice.batch_size]
        is_there = all(entry.finished is not None for entry in batch)
        return batch if is_there and len(batch) == self._choice.batch_size else None


class _Clock:
    """Seconds with and without a group being sampled, since they were last taken."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()
        self._is_busy = False
        self._seconds = {True: 0.0, False: 0.0}

    def set_busy(self, is_busy: bool) -> None:
        """From now on."""
        now_s = time.perf_counter()
        self._seconds[self._is_busy] += now_s - self._since_s
        self._since_s, self._is_busy = now_s, is_busy

    def take(self) -> tuple[float, float]:
        """Busy and idle seconds."""
        self.set_busy(self._is_busy)
        taken, self._seconds = self._seconds, {True: 0.0, False: 0.0}
        return taken[True], taken[False]
