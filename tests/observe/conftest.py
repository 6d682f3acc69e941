import numpy as np
import pytest

from tandem.types import Ending, Group, Prompt, Sample


def make_sample(
    index,
    reward,
    *,
    num_prompt=2,
    sampled=(True, True, True),
    logprobs=None,
    ending=Ending.STOP,
    text="an answer",
    rollout=-1,
    verdict=None,
    version=0,
):
    """A sample with `num_prompt` prompt tokens and one token for each entry of `sampled`."""
    sampled_T = np.array([False] * num_prompt + list(sampled))
    logprobs_T = np.zeros(len(sampled_T), dtype=np.float32)
    if logprobs is not None:
        logprobs_T[num_prompt:] = logprobs
    return Sample(
        index=index,
        position=0,
        tokens_T=np.arange(len(sampled_T), dtype=np.int32),
        sampled_T=sampled_T,
        logprobs_T=logprobs_T,
        version_T=np.where(sampled_T, version, -1).astype(np.int32),
        ending=ending,
        text=text,
        rollout=rollout,
        reward=reward,
        verdict=verdict,
    )


def make_group(index, samples, **columns):
    prompt = Prompt(
        index=index,
        tokens_T=np.arange(2, dtype=np.int32),
        text=f"prompt {index}",
        content=f"prompt {index}",
        label=str(index),
    )
    return Group(prompt=prompt, samples=tuple(samples), **columns)


@pytest.fixture
def sample():
    return make_sample


@pytest.fixture
def group():
    return make_group


@pytest.fixture
def rewarded():
    """Groups with the given rewards: `rewarded([1, 0], [0, 0])` are two groups of two samples."""

    def build(*rewards_of_groups):
        groups = []
        for number, rewards in enumerate(rewards_of_groups):
            samples = [
                make_sample(number * 100 + place, reward) for place, reward in enumerate(rewards)
            ]
            groups.append(make_group(number, samples))
        return tuple(groups)

    return build
