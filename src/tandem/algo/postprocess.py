"""The user's last word on what is trained on, before it is packed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tandem.algo.dialect import column_of, rollout_view
from tandem.algo.hooks import Hooks
from tandem.algo.token_kl import response_kl
from tandem.config import AlgoConfig
from tandem.errors import HookError
from tandem.types import COLUMNS, Group, Sample

FLAG = "--rollout-data-postprocess-path"


def postprocessed(
    groups: Sequence[Group], scores: Sequence[np.ndarray], cfg: AlgoConfig, hooks: Hooks
) -> tuple[Group, ...]:
    """The groups with what `fn(args, rollout_id, rollout_data)` left in its lists.

    Taken over are `loss_masks`, `rollout_log_probs` and the columns that were there: `log_probs`,
    `ref_log_probs`, `teacher_log_probs`, `values`, `advantages`, `returns`. A token taken out of
    `loss_masks` still counts in the denominators of the loss, as the dialect has it. `scores` are
    the rewards `[G]` as advantages started from them. Raises HookError.
    """
    if hooks.postprocess is None:
        return tuple(groups)
    data = rollout_view(groups, scores, response_kl(groups, cfg))
    known = {name for name in COLUMNS.values() if name in data}
    hooks.postprocess(data)
    count = sum(len(group.samples) for group in groups)
    for name in ("loss_masks", "rollout_log_probs", *known):
        if len(data.get(name) or ()) != count:
            raise HookError(f"{FLAG} left {name} with another number of entries than {count}")
    done, first = [], 0
    for group in groups:
        done.append(_with(group, data, known, first))
        first += len(group.samples)
    return tuple(done)


def _with(group: Group, data: dict[str, Any], known: set[str], first: int) -> Group:
    """One group, whose samples are the entries of `data` from `first` on."""
    start = len(group.prompt.tokens_T)

    def column(name: str, place: int) -> np.ndarray:
        return column_of(group, place, data[name][first + place], f"{FLAG} left as {name}")

    places = range(len(group.samples))
    samples = [
        replace(sample, logprobs_T=column("rollout_log_probs", place))
        for place, sample in enumerate(group.samples)
    ]
    masks = [np.asarray(data["loss_masks"][first + place]) != 0 for place in places]
    columns: dict[str, Any] = {
        ours: tuple(column(theirs, place) for place in places)
        for ours, theirs in COLUMNS.items()
        if theirs in known
    }
    stays = tuple(_stays(*pair, start) for pair in zip(samples, masks, strict=True))
    return replace(group, samples=tuple(samples), stays=stays, **columns)


def _stays(sample: Sample, mask: np.ndarray, start: int) -> np.ndarray:
    if mask.shape != (sample.num_tokens - start,):
        raise HookError(f"{FLAG} left loss_masks of sample {sample.index} with another length")
    stays_T = np.concatenate([np.zeros(start, bool), mask])
    if (stays_T & ~sample.sampled_T).any():
        raise HookError(
            f"{FLAG} added tokens to loss_masks of sample {sample.index} that the policy did not "
            "choose; they have no log-probs, so only take tokens out"
        )
    return stays_T
