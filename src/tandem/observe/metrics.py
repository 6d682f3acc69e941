"""Numbers about groups and samples, under the dialect's metric names. Pure functions."""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tandem.types import COLUMNS, Ending, Group, Rollout, Sample

REPETITION_TAIL = 10_000
"""Characters at the end of an answer that are looked at for repetition."""

REPETITION_RATIO = 10.0
"""An answer whose tail shrinks more than this under zlib repeats itself."""


def rollout_metrics(
    groups: Sequence[Group], *, category_key: str | None = None
) -> dict[str, float]:
    """What one rollout looked like: `rollout/...` of lengths, rewards and endings.

    Samples without a verdict are counted in `rollout/missing_verdicts` and are in no mean of
    rewards. `category_key` names a field of dictionary verdicts whose values are counted.
    """
    samples = _samples(groups)
    metrics = _with_prefix("rollout/", answer_metrics(samples))
    rewards = _rewards(samples)
    if rewards:
        metrics["rollout/raw_reward"] = float(np.mean(rewards))
    metrics["rollout/missing_verdicts"] = float(len(samples) - len(rewards))
    for reward, count in _zero_std_counts(groups).items():
        metrics[f"rollout/zero_std/count_{reward}"] = float(count)
    if category_key is not None:
        metrics |= _with_prefix("rollout/", _category_shares(samples, category_key))
    return metrics


def answer_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Lengths (tokens that the policy chose), repetition and truncation; {} without samples."""
    if not samples:
        return {}
    lengths = np.array([sample.num_sampled for sample in samples], dtype=np.float64)
    return {
        "response_len/mean": float(lengths.mean()),
        "response_len/median": float(np.median(lengths)),
        "response_len/max": float(lengths.max()),
        "response_len/min": float(lengths.min()),
        "repetition_frac": _share(repeats(sample.text) for sample in samples),
        "truncated_ratio": _share(sample.ending is Ending.LENGTH for sample in samples),
    }


def repeats(text: str) -> bool:
    """Whether the end of a long answer is so regular that zlib shrinks it more than tenfold."""
    if len(text) <= REPETITION_TAIL:
        return False
    tail = text[-REPETITION_TAIL:].encode("utf-8", errors="replace")
    return len(tail) / len(zlib.compress(tail)) > REPETITION_RATIO


def training_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the trainer was given, as `rollout/...`: means over samples, and over tokens by column.

    Columns are reduced as the loss is by default (dialect 3.9): the mean over attempts of the mean
    over an attempt's trained tokens. Columns that are absent have no metric.
    """
    samples = _samples(groups)
    if not samples:
        return {}
    metrics = {
        "response_lengths": float(np.mean(_responses(groups))),
        "total_lengths": float(np.mean([sample.num_tokens for sample in samples])),
        "truncated": _share(sample.ending is Ending.LENGTH for sample in samples),
        "rollout_log_probs": rollout_mean(
            groups, [[sample.logprobs_T for sample in group.samples] for group in groups]
        ),
    }
    scores = [score for group in groups for score in group.scores or ()]
    if scores:
        metrics["rewards"] = float(np.mean(scores))
    for ours, name in COLUMNS.items():
        columns = [getattr(group, ours) for group in groups]
        if all(column is not None for column in columns):
            metrics[name] = rollout_mean(groups, columns)
    return _with_prefix("rollout/", metrics)


def rollout_mean(groups: Sequence[Group], columns: Sequence[Sequence[np.ndarray]]) -> float:
    """The mean over attempts of the mean over each attempt's trained tokens (dialect 3.9).

    `columns` has, for each group, one array a sample. An attempt without trained tokens is 0.
    """
    sums: dict[int, float] = {}
    counts: Counter[int] = Counter()
    for group, column in zip(groups, columns, strict=True):
        for sample, array_T in zip(group.samples, column, strict=True):
            chosen = np.asarray(array_T, dtype=np.float64)[sample.sampled_T]
            sums[sample.rollout] = sums.get(sample.rollout, 0.0) + float(chosen.sum())
            counts[sample.rollout] += sample.num_sampled
    if not sums:
        return 0.0
    return sum(total / max(counts[rollout], 1) for rollout, total in sums.items()) / len(sums)


def pass_metrics(groups: Sequence[Group], separator: str) -> dict[str, float]:
    """`{separator}pass@{k}` for k = 1, 2, 4, ... up to the largest group; correct is reward 1.

    Each group gives the unbiased estimate from the samples that have a verdict; a group with fewer
    than k of those does not speak about k.
    """
    verdicts = [_rewards(group.samples) for group in groups]
    largest = max((len(rewards) for rewards in verdicts), default=0)
    metrics = {}
    for k in (2**exponent for exponent in range(largest.bit_length())):
        estimates = [
            pass_at_k(len(rewards), sum(reward == 1 for reward in rewards), k)
            for rewards in verdicts
            if len(rewards) >= k
        ]
        metrics[f"{separator}pass@{k}"] = float(np.mean(estimates))
    return metrics


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that k samples, drawn without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2021, arXiv:2107.03374.
    """
    assert 0 < k <= num_samples, f"pass@{k} of {num_samples} samples"
    assert 0 <= num_correct <= num_samples, f"{num_correct} of {num_samples} samples correct"
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def evaluation_metrics(name: str, groups: Sequence[Group]) -> dict[str, float]:
    """The numbers of one held-out set: `eval/{name}` is its mean reward.

    Samples without a verdict are left out of the mean and counted beside it; an answer that could
    not be judged is not a wrong one, but a mean over few verdicts has to be visible.
    """
    samples = _samples(groups)
    rewards = _rewards(samples)
    metrics: dict[str, float] = {}
    if rewards:
        metrics[f"eval/{name}"] = float(np.mean(rewards))
    answers = answer_metrics(samples)
    if answers:
        metrics[f"eval/{name}-truncated_ratio"] = answers.pop("truncated_ratio")
    metrics |= _with_prefix(f"eval/{name}", pass_metrics(groups, "-"))
    metrics |= _with_prefix(f"eval/{name}/", answers)
    metrics[f"eval/{name}-missing_verdicts"] = float(len(samples) - len(rewards))
    return metrics


def turn_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """`multi_turn/...`: turns of the policy, lengths with and without the world's replies."""
    samples = _samples(groups)
    if not samples:
        return {}
    return {
        f"multi_turn/{name}/{word}": float(reduced(values))
        for name, values in (
            ("round_number", [_num_turns(sample.sampled_T) for sample in samples]),
            ("raw_response_length", _responses(groups)),
            ("wo_obs_response_length", [sample.num_sampled for sample in samples]),
        )
        for word, reduced in (("mean", np.mean), ("max", np.max), ("min", np.min))
    }


def correct_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Lengths of correct answers (reward 1) alone; {} when there are none."""
    pairs = [(group, sample) for group in groups for sample in group.samples if sample.reward == 1]
    if not pairs:
        return {}
    lengths = [sample.num_tokens - len(group.prompt.tokens_T) for group, sample in pairs]
    return {
        "rollout/correct_response_lengths": float(np.mean(lengths)),
        "rollout/correct_total_lengths": float(np.mean([one.num_tokens for _, one in pairs])),
    }


def speed_metrics(groups: Sequence[Group], seconds: float, num_devices: int) -> dict[str, float]:
    """`perf/...` of sampling for `seconds` on `num_devices`; effective counts chosen tokens."""
    lengths, chosen = _responses(groups), [sample.num_sampled for sample in _samples(groups)]
    if not lengths or seconds <= 0:
        return {}
    per_device_s = seconds * max(num_devices, 1)
    return {
        "perf/rollout_time": seconds,
        "perf/tokens_per_gpu_per_sec": sum(lengths) / per_device_s,
        "perf/effective_tokens_per_gpu_per_sec": sum(chosen) / per_device_s,
        "perf/longest_sample_tokens_per_sec": max(lengths) / seconds,
    }


def order_line(rollout: Rollout) -> dict[str, Any]:
    """What a rollout was made of where timing decides it: `groups` holds, for each group as it is
    trained, its prompt's index and the oldest and newest weight version that chose a token."""
    groups = []
    for group in rollout.groups:
        chosen = np.concatenate([s.version_T[s.sampled_T] for s in group.samples])
        bounds = [int(chosen.min()), int(chosen.max())] if len(chosen) else [None, None]
        groups.append([group.prompt.index, *bounds])
    return {"step": rollout.step, "groups": groups}


def reward_warning(groups: Sequence[Group]) -> str | None:
    """A sentence when a batch holds nothing to tell good from bad, else None."""
    samples = _samples(groups)
    rewards = _rewards(samples)
    if not samples:
        return None
    if not rewards:
        return (
            f"No verdict came for any of the {len(samples)} samples: the reward function failed or "
            "timed out every time. Try it with `tandem grade` on lines of samples.jsonl."
        )
    if len(rewards) > 1 and len(set(rewards)) == 1:
        return (
            f"All {len(rewards)} rewards of this batch are {rewards[0]:g}: nothing tells a good "
            "answer from a bad one, so nothing is learned from it. Look at samples.jsonl: either "
            "the task is too hard or too easy for this model, or the reward does not fit the form "
            "of its answers (--rm-type deepscaler, for one, gives 0 without `</think>`; math does "
            "not ask for it)."
        )
    spreads = [len(set(_rewards(group.samples))) for group in groups if len(group.samples) > 1]
    if spreads and max(spreads) < 2:
        return (
            f"In each of the {len(spreads)} groups of this batch all rewards are equal: comparing "
            "rewards within a group, as GRPO does, teaches nothing here. More samples a prompt "
            "(--n-samples-per-prompt) or problems of another difficulty give a signal."
        )
    return None


def _samples(groups: Iterable[Group]) -> list[Sample]:
    return [sample for group in groups for sample in group.samples]


def _responses(groups: Iterable[Group]) -> list[int]:
    """Tokens of each sample that follow its prompt."""
    return [length for group in groups for length in group.responses_G]


def _rewards(samples: Iterable[Sample]) -> list[float]:
    return [float(sample.reward) for sample in samples if sample.reward is not None]


def _share(truths: Iterable[bool]) -> float:
    return float(np.mean(list(truths)))


def _with_prefix(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items()}


def _zero_std_counts(groups: Iterable[Group]) -> Counter[float]:
    """Groups of two verdicts or more that are all equal, by that reward rounded to a tenth."""
    counts: Counter[float] = Counter()
    for group in groups:
        rewards = _rewards(group.samples)
        if len(rewards) > 1 and len(set(rewards)) == 1:
            counts[round(rewards[0], 1)] += 1
    return counts


def _category_shares(samples: Sequence[Sample], key: str) -> dict[str, float]:
    found = Counter(
        str(sample.verdict[key])
        for sample in samples
        if isinstance(sample.verdict, Mapping) and key in sample.verdict
    )
    return {f"error_cat/{name}": count / len(samples) for name, count in found.items()}


def _num_turns(sampled_T: np.ndarray) -> int:
    """How many unbroken stretches of chosen tokens there are."""
    starts = np.diff(np.concatenate([[False], sampled_T]).astype(np.int8)) == 1
    return int(starts.sum())
