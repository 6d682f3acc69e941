"""One round under way: groups are sampled and judged until enough of them are kept."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tandem.rollout.door import LAPS, Brake, Holds
from tandem.rollout.groups import GroupSampler
from tandem.rollout.rules import Round, Ruling
from tandem.rollout.settings import Terms
from tandem.types import Group

GRACE_S = 1.0
"""How long a generate function may take to notice that its request was aborted."""

Fetch = Callable[[], Sequence[Group]]
"""More groups to sample: fresh ones, or such as were cut off before."""

GroupFilter = Callable[[Group], Ruling]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a round gave, each in the order of prompts."""

    kept: tuple[Group, ...]
    dropped: tuple[Group, ...]
    leftovers: tuple[Group, ...]
    reasons: Counter[str]
    held_s: float
    numbers: Mapping[str, float] = field(default_factory=dict)  # metrics of who gave it


class Collection:
    """Runs the tasks of one round by its rules.

    Takes groups from `fetch`; gives an Outcome; waits for samples and verdicts, and is woken when
    the rules say that the round is full. While a verdict that is still to come could change what
    is sampled next, the engine is held: so what a round gives depends on the steps of the engine,
    not on how fast judges are.
    """

    def __init__(
        self,
        rules: Round,
        sampler: GroupSampler,
        terms: Terms,
        *,
        fetch: Fetch,
        keeps: GroupFilter | None,
        saves: bool,
        holds: Holds | None,
        on_sample: Callable[[int], None],
    ) -> None:
        """`holds` is None where no decision can be early or late; `on_sample` is called with the
        number of samples started, as each one ends."""
        self._rules, self._sampler, self._terms = rules, sampler, terms
        self._fetch, self._keeps, self._saves = fetch, keeps, saves
        self._brake = Brake(holds, self._is_decisive)
        self._on_sample = on_sample
        self._groups: list[Group] = []
        self._num_samples = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._is_judging: set[int] = set()
        self._full: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Outcome:
        """Samples until the round is full, then stops at once and waits for what is still due."""
        self._sampler.door.open(on_completion=self._brake.touch)
        try:
            self._react()
            await self._full
            await self._stop()
            await self._last_verdicts()
            return self._outcome()
        finally:
            await self._clear()

    def _react(self) -> None:
        """Does what the rules ask for after something has happened."""
        while self._rules.wants_more:
            self._start(self._fetch())
        if self._rules.is_full and not self._full.done():
            self._full.set_result(None)
        self._brake.touch()

    def _is_decisive(self) -> bool:
        """Whether the engine must not go on before something else has happened."""
        return self._rules.is_full or self._rules.hangs_on_judges

    def _start(self, groups: Sequence[Group]) -> None:
        assert groups, "a source gave no groups where some were asked for"
        first = len(self._groups)
        self._groups.extend(groups)
        self._num_samples += sum(len(group.samples) for group in groups)
        self._rules.start(range(first, len(self._groups)))
        for place in range(first, len(self._groups)):
            task = asyncio.create_task(self._one(place))
            task.add_done_callback(self._notice)
            self._tasks.append(task)

    async def _one(self, place: int) -> None:
        """Samples a group and has it judged; the rules hear of both."""

        def on_sample() -> None:
            self._on_sample(self._num_samples)

        sampled = await self._sampler.sample(self._groups[place], self._terms, on_sample)
        self._groups[place] = sampled
        if self._rules.is_full:
            return
        self._is_judging.add(place)
        self._rules.finish(place)
        self._react()
        await _laps(LAPS)  # a verdict that is there at once counts like one that comes late
        judged = await self._sampler.judge(sampled)
        self._groups[place] = judged
        self._is_judging.discard(place)
        if self._keeps is not None and not self._rules.is_full:
            self._rules.rule(place, self._keeps(judged))
            self._react()

    def _notice(self, task: asyncio.Task[None]) -> None:
        """Ends the round with what a task raised."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._full.done():
            self._full.set_exception(error)

    async def _stop(self) -> None:
        """Ends sampling; after it nothing of this round is live in the engine."""
        await self._sampler.door.shut()
        sampling = [
            task
            for place, task in enumerate(self._tasks)
            if not task.done() and place not in self._is_judging
        ]
        if sampling:
            _, late = await asyncio.wait(sampling, timeout=GRACE_S if self._saves else 0.0)
            await _cancel(late)

    async def _last_verdicts(self) -> None:
        """Waits for the judges of what is kept, and of what is saved for later."""
        kept = set(self._rules.kept)
        wanted = [self._tasks[place] for place in self._is_judging if place in kept or self._saves]
        await asyncio.gather(*wanted)

    def _outcome(self) -> Outcome:
        kept, dropped = set(self._rules.kept), self._rules.dropped
        places = range(len(self._groups))
        rest = [p for p in places if p not in kept and p not in dropped] if self._saves else []
        return Outcome(
            kept=self._ordered(kept),
            dropped=self._ordered(dropped),
            leftovers=self._ordered(rest),
            reasons=Counter(dropped.values()),
            held_s=self._brake.held_s,
        )

    def _ordered(self, places) -> tuple[Group, ...]:
        chosen = [self._groups[place] for place in places]
        return tuple(sorted(chosen, key=lambda group: group.prompt.index))

    async def _clear(self) -> None:
        """Leaves nothing behind, whatever happened."""
        live = [task for task in self._tasks if not task.done()]
        if live:
            await self._sampler.door.shut()
            await _cancel(live)
        self._sampler.door.open()
        self._brake.let_go()


async def _laps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancel(tasks) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
