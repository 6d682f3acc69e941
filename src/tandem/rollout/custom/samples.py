"""Samples from our form to the one that hooks change, and back."""

from dataclasses import replace
from typing import Any

import numpy as np

from tandem.hooks.view import DialectSample, DialectStatus, view_of
from tandem.rollout.custom.line import Written
from tandem.types import NO_VERSION, Ending, Group, Prompt, Sample

ENDING_OF = {
    DialectStatus.PENDING: Ending.STOP,
    DialectStatus.COMPLETED: Ending.STOP,
    DialectStatus.TRUNCATED: Ending.LENGTH,
    DialectStatus.ABORTED: Ending.ABORT,
    DialectStatus.FAILED: Ending.ERROR,
}


class Misshapen(ValueError):
    """A hook left a sample in a form that cannot be trained on."""


def fresh_view(prompt: Prompt, sample: Sample) -> DialectSample:
    """A sample as a generate function gets it: pending, or aborted with what it has."""
    view = view_of(prompt, sample)
    if sample.num_tokens == len(prompt.tokens_T):
        view.status = DialectStatus.PENDING
        view.loss_mask = view.rollout_log_probs = None
    return view


def views_of(group: Group) -> list[DialectSample]:
    """A group as hooks see it."""
    return [view_of(group.prompt, sample) for sample in group.samples]


def sample_of(
    view: Any,
    before: Sample,
    *,
    version: int,
    reward_key: str | None,
    written: Written | None = None,
) -> Sample:
    """The sample that a hook made of `before`; raises Misshapen.

    Tokens that `before` had keep the version that chose them, tokens that an engine has `written`
    have the version that it noted, others `version` or the newest of `weight_versions`. A sample
    with `remove_sample` keeps its tokens, and none is trained.
    """
    if not isinstance(view, DialectSample):
        raise Misshapen(f"got {type(view).__name__}; wanted the sample, or one made with Sample()")
    tokens_T = np.asarray(view.tokens, dtype=np.int32)
    sampled_T, logprobs_T = _columns(view, len(tokens_T))
    told = [int(one) for one in view.weight_versions if str(one).isdecimal()]
    version_T = np.full(len(tokens_T), max(version, *told, NO_VERSION), np.int32)
    if written is not None:
        version_T = written.versions_on(tokens_T, version_T)
    known = min(len(tokens_T), before.num_tokens)
    if (tokens_T[:known] == before.tokens_T[:known]).all():
        was_T = before.sampled_T[:known]
        version_T[:known][was_T] = before.version_T[:known][was_T]
    version_T[~sampled_T] = NO_VERSION
    metadata = dict(view.metadata)
    for name in ("generate_function_path", "custom_rm_path"):
        if getattr(view, name) is not None:
            metadata[name] = getattr(view, name)
    return replace(
        before,
        tokens_T=tokens_T,
        sampled_T=sampled_T,
        logprobs_T=logprobs_T,
        version_T=version_T,
        ending=ENDING_OF[DialectStatus(view.status)],
        text=view.response,
        metadata=metadata,
        **_reward(view.reward, before, reward_key),
    )


def _columns(view: DialectSample, length: int) -> tuple[np.ndarray, np.ndarray]:
    count = view.response_length
    if not 0 <= count <= length or length == 0:
        raise Misshapen(f"response_length is {count} and tokens has {length} entries")
    mask = [1] * count if view.loss_mask is None else view.loss_mask
    logprobs = [0.0] * count if view.rollout_log_probs is None else view.rollout_log_probs
    for name, column in (("loss_mask", mask), ("rollout_log_probs", logprobs)):
        if len(column) != count:
            raise Misshapen(f"{name} has {len(column)} entries and response_length is {count}")
    sampled_T, logprobs_T = np.zeros(length, bool), np.zeros(length, np.float32)
    if count and not view.remove_sample:
        sampled_T[-count:] = np.asarray(mask, dtype=bool)
        logprobs_T[-count:] = np.where(sampled_T[-count:], logprobs, 0)
    return sampled_T, logprobs_T


def _reward(said: Any, before: Sample, key: str | None) -> dict[str, Any]:
    """The fields of a reward that the hook gave; those of before where it gave none."""
    if said is None:
        return {"reward": None, "verdict": before.verdict if before.reward is None else None}
    number = said[key] if isinstance(said, dict) and key is not None else said
    if not isinstance(number, int | float):
        raise Misshapen(f"reward is {said!r:.80}; wanted a number, or a dictionary and a key of it")
    return {"reward": float(number), "verdict": said}
