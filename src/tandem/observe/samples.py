"""A few samples of every rollout as a person wants to read them."""

from collections.abc import Sequence
from typing import Any

from tandem.types import NO_VERSION, Group, Sample

NUM_GROUPS = 4
"""Groups that are shown of one rollout or evaluation, two samples of each at most."""

MAX_CHARS = 8_000
"""A longer text is shown without its middle."""


def sample_lines(groups: Sequence[Group], *, step: int, set_name: str | None = None) -> list[dict]:
    """The best and the worst sample of a few evenly spaced groups, as rows for `samples.jsonl`.

    `set_name` is that of a held-out set, None for training samples.
    """
    return [
        {"step": step, "set": set_name, **describe_sample(group, sample)}
        for group in evenly_spaced(groups, NUM_GROUPS)
        for sample in extremes(group)
    ]


def evenly_spaced(groups: Sequence[Group], count: int) -> list[Group]:
    """At most `count` groups, the first among them, at equal distances."""
    if len(groups) <= count:
        return list(groups)
    return [groups[index * len(groups) // count] for index in range(count)]


def extremes(group: Group) -> tuple[Sample, ...]:
    """The group's sample of highest and of lowest reward; one where all are equal."""
    judged = [sample for sample in group.samples if sample.reward is not None]
    if not judged:
        return group.samples[:1]
    best = max(judged, key=_reward)
    worst = min(judged, key=_reward)
    return (best,) if best.reward == worst.reward else (best, worst)


def describe_sample(group: Group, sample: Sample) -> dict[str, Any]:
    """One sample: its texts, its verdict, its lengths in tokens and the weights that wrote it."""
    prompt = group.prompt
    versions = set(sample.version_T[sample.sampled_T].tolist()) - {NO_VERSION}
    return {
        "prompt_index": prompt.index,
        "index": sample.index,
        "prompt": without_middle(prompt.text),
        "response": without_middle(sample.text),
        "label": prompt.label,
        "reward": sample.reward,
        "verdict": None if isinstance(sample.verdict, (int, float)) else sample.verdict,
        "ending": sample.ending.value,
        "prompt_tokens": len(prompt.tokens_T),
        "response_tokens": sample.num_tokens - len(prompt.tokens_T),
        "sampled_tokens": sample.num_sampled,
        "versions": sorted(versions),
    }


def without_middle(text: str) -> str:
    """The text, or its beginning and end with a remark on what is left out between them."""
    left_out = len(text) - MAX_CHARS
    if left_out <= 0:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"


def _reward(sample: Sample) -> float:
    assert sample.reward is not None, "only judged samples are compared"
    return sample.reward
