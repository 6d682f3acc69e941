"""Rollouts that nobody samples: those that another run wrote, and conversations to be imitated."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tandem.contracts import Source
from tandem.rollout.dump import path_of, read
from tandem.rollout.events import EventLoop
from tandem.types import NO_VERSION, Ending, Group, Prompt, Rollout, Sample

MaskedTokens = tuple[np.ndarray, np.ndarray]
"""`tokens_T` (int32) and `mask_T` (bool, True where the token is learned)."""


class SupervisedStage:
    """Gives conversations in the place of rollouts, so that the same loop and trainer learn."""

    def __init__(
        self,
        *,
        source: Source,
        mask: Callable[[Prompt], MaskedTokens],
        tokenizer: Any,
        batch_size: int,
        events: EventLoop,
    ) -> None:
        self._source = source
        self._mask = mask
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._events = events

    def collect(self, step: int) -> Rollout:
        """`batch_size` groups of one conversation each; DataError where nothing is learned."""
        started_s = time.perf_counter()
        groups = self._events.run(self._collect())
        seconds = time.perf_counter() - started_s
        return Rollout(step=step, groups=groups, metrics={"perf/rollout_time": seconds})

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must hold so that the next rollout is the same."""
        return {"source": self._source.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; raises DataError when the data set changed."""
        self._source.restore(state["source"])

    async def _collect(self) -> tuple[Group, ...]:
        return tuple(self._group(prompt) for prompt in self._source.take(self._batch_size))

    def _group(self, prompt: Prompt) -> Group:
        tokens_T, mask_T = self._mask(prompt)
        learned_T = tokens_T[int(mask_T.argmax()) :]
        sample = Sample(
            index=prompt.index,
            position=0,
            tokens_T=tokens_T,
            sampled_T=mask_T,
            logprobs_T=np.zeros(len(tokens_T), np.float32),
            version_T=np.full(len(tokens_T), NO_VERSION, np.int32),
            ending=Ending.STOP,
            text=self._tokenizer.decode(learned_T.tolist()),
            reward=0.0,
            metadata=prompt.metadata,
        )
        return Group(prompt=prompt, samples=(sample,))


class ReplayedStage:
    """Gives rollouts from files, so that trainers learn from them; a `contracts.Sampler`."""

    def __init__(self, template: str, share: float | None = None) -> None:
        """`template` is the path of the files, with `{rollout_id}` to be filled in; `share` is how
        much of each is taken (None: all)."""
        self._template, self._share = template, share

    def collect(self, step: int) -> Rollout:
        """The groups of this rollout's file, in its order; raises DataError."""
        started_s = time.perf_counter()
        groups = read(path_of(self._template, step))
        if self._share is not None:
            groups = from_both_ends(groups, self._share)
        seconds = time.perf_counter() - started_s
        return Rollout(step=step, groups=groups, metrics={"perf/rollout_time": seconds})

    def state(self) -> Mapping[str, Any]:
        """Nothing: the number of the rollout says which file is next."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: a run that sampled can be gone on from too."""


def from_both_ends(groups: Sequence[Group], share: float) -> tuple[Group, ...]:
    """That share of the groups, at least one: half of them the first, half the last."""
    count = max(1, int(len(groups) * share))
    num_last = count // 2
    return (*groups[: count - num_last], *groups[len(groups) - num_last :])
