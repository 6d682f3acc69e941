"""The rollout stage: prompts in, judged groups out."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from tandem.rollout.collection import Collection, GroupFilter, Outcome
from tandem.rollout.door import Holds
from tandem.rollout.events import EventLoop
from tandem.rollout.groups import GroupSampler, blank_sample
from tandem.rollout.rules import Order, Round
from tandem.rollout.settings import Terms
from tandem.rollout.supply import Supply
from tandem.types import Ending, Group, Rollout, Sample

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all) as a round goes on."""

BEGAN = "start_rollout_id"
"""In the metadata of a sample that was cut off: the rollout of its first token."""

MANY_DROPPED = 8
"""So many times the batch refused in one round is said aloud: the filter may refuse everything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How many groups a round keeps, and which."""

    batch_size: int
    fetch_size: int  # groups that are fetched at once
    order: Order = "finished"
    keeps: GroupFilter | None = None  # a filter of judged groups
    saves: bool = False  # what is cut off goes on in the next round
    masks_old: bool = False  # tokens of earlier weights are not trained

    @property
    def takes_all(self) -> bool:
        """Whether a round gives all that it began, so that no decision can be early or late."""
        return self.keeps is None and not self.saves and self.fetch_size == self.batch_size


Change = Callable[[tuple[Group, ...]], tuple[Group, ...]]
Look = Callable[[tuple[Group, ...]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class AfterRound:
    """What users' hooks do with a round once it is there."""

    change: Change | None = None  # of the kept groups
    look: Look | None = None  # at all judged groups, the dropped ones too
    log: Callable[[Rollout], bool] | None = None  # True: this stage's metrics are logged already
    mark: Callable[[int], None] | None = None  # the source saves itself


NOTHING_AFTER = AfterRound()


class Rounds(Protocol):
    """Gives the rounds of a stage in the place of collections that begin and end."""

    async def collect(self, step: int) -> Outcome: ...

    def state(self) -> Mapping[str, Any]:
        """The supply's, with what is on its way."""


class RolloutStage:
    """Collects rollouts; owns the event loop that sampling, hooks and rewards share."""

    def __init__(
        self,
        *,
        supply: Supply,
        groups: GroupSampler,
        terms: Terms,
        choice: Choice,
        events: EventLoop,
        holds: Holds | None = None,
        after: AfterRound = NOTHING_AFTER,
        progress: Progress | None = None,
        rounds: Rounds | None = None,
    ) -> None:
        """`holds` is the engine where it can be held, so that rounds repeat to the bit; `rounds`
        gives the rounds, where they are not collected one by one here."""
        self._after = after
        self._supply, self._groups, self._terms, self._choice = supply, groups, terms, choice
        self._events = events
        self._holds = holds
        self._rounds = rounds
        self._progress = progress or (lambda done, total: None)

    def collect(self, step: int) -> Rollout:
        """`batch_size` judged groups in the order of their prompts, none lost, none doubled."""
        started_s = time.perf_counter()
        num_waiting = len(self._supply)
        one_round = self._collect(step) if self._rounds is None else self._rounds.collect(step)
        outcome = self._events.run(one_round)
        num_continued = num_waiting - len(self._supply)
        self._supply.put_back([began_in(group, step) for group in outcome.leftovers])
        metrics = {
            "perf/rollout_time": time.perf_counter() - started_s,
            **self._numbers(outcome, num_continued),
            **outcome.numbers,
        }
        rollout = Rollout(
            step=step, groups=self._trained(outcome), metrics=metrics, dropped=outcome.dropped
        )
        if self._after.mark is not None:
            self._after.mark(step)
        if self._after.log is not None and self._after.log(rollout):
            seconds = metrics["perf/rollout_time"]
            return replace(rollout, metrics={"perf/rollout_time": seconds})
        return rollout

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must hold so that the next rollout is the same."""
        return (self._supply if self._rounds is None else self._rounds).state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; raises DataError when the data set changed."""
        self._supply.restore(state)

    def _trained(self, outcome: Outcome) -> tuple[Group, ...]:
        """The kept groups as they are trained on, after hooks have had their say."""
        kept = outcome.kept
        if self._choice.masks_old:
            kept = tuple(without_old(group, self._groups.door.version) for group in kept)
        if self._after.change is not None:
            kept = self._after.change(kept)
        if self._after.look is not None:
            self._after.look((*kept, *outcome.dropped))
        return kept

    async def _collect(self, step: int) -> Outcome:
        choice = self._choice
        done = num_fetched = 0

        def on_sample(total: int) -> None:
            nonlocal done
            done += 1
            self._progress(done, total)

        def fetch() -> list[Group]:
            nonlocal num_fetched
            before, num_fetched = num_fetched, num_fetched + choice.fetch_size
            limit = MANY_DROPPED * choice.batch_size + choice.fetch_size
            if before <= limit < num_fetched:
                log.warning(
                    "rollout %d: %d groups were sampled and %d are still not kept; "
                    "does the filter refuse everything?",
                    step,
                    before,
                    choice.batch_size,
                )
            return self._supply.take(choice.fetch_size)

        collection = Collection(
            Round(
                choice.batch_size,
                order=choice.order,
                filters=choice.keeps is not None,
                saves=choice.saves,
            ),
            self._groups,
            replace(self._terms, rollout_id=step),
            fetch=fetch,
            keeps=choice.keeps,
            saves=choice.saves,
            holds=None if choice.takes_all else self._holds,
            on_sample=on_sample,
        )
        return await collection.run()

    def _numbers(self, outcome: Outcome, num_continued: int) -> dict[str, float]:
        """What only this stage knows of a round; nothing where nothing was chosen."""
        numbers = {
            f"rollout/dynamic_filter/drop_{reason}": float(count)
            for reason, count in sorted(outcome.reasons.items())
        }
        if self._choice.keeps is not None:
            numbers["rollout/dynamic_filter/num_dropped"] = float(len(outcome.dropped))
        if self._choice.keeps is not None or self._choice.saves:
            numbers["perf/hold_time"] = outcome.held_s
        if self._choice.saves or num_continued:
            numbers["rollout/num_continued_groups"] = float(num_continued)
            numbers["rollout/num_waiting_groups"] = float(len(self._supply))
        return numbers


def began_in(group: Group, step: int) -> Group:
    """The group with the rollout of their first token on all samples that have one.

    An attempt that had fanned out and is not whole begins anew: its parts cannot go on alone.
    """
    start = len(group.prompt.tokens_T)
    parts = Counter([sample.rollout for sample in group.samples])
    cut_off = {sample.rollout for sample in group.samples if sample.ending is Ending.ABORT}
    anew = {rollout for rollout in cut_off if parts[rollout] > 1}

    def marked(sample: Sample) -> Sample:
        if sample.rollout in anew:
            return blank_sample(group.prompt, index=sample.index, position=sample.position)
        if BEGAN in sample.metadata or sample.num_tokens == start:
            return sample
        return replace(sample, metadata={**sample.metadata, BEGAN: step})

    samples, seen = [], set()
    for sample in group.samples:
        if sample.rollout not in anew or sample.rollout not in seen:
            samples.append(marked(sample))
        seen.add(sample.rollout)
    return replace(group, samples=tuple(samples))


def without_old(group: Group, version: int) -> Group:
    """The group with the tokens that other weights than these chose left untrained."""

    def masked(sample: Sample) -> Sample:
        is_old_T = sample.sampled_T & (sample.version_T != version)
        if not is_old_T.any():
            return sample
        return replace(
            sample,
            sampled_T=sample.sampled_T & ~is_old_T,
            logprobs_T=np.where(is_old_T, 0, sample.logprobs_T).astype(np.float32),
        )

    return replace(group, samples=tuple(map(masked, group.samples)))
