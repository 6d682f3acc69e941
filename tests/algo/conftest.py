"""Groups of samples with rewards, and columns about them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.types import COLUMNS, Ending, Group, Prompt, Sample

torch.set_num_threads(1)

PROMPT = 2


def make_sample(reward, *, position=0, response=3, masked=(), ending=Ending.STOP) -> Sample:
    sampled_T = np.array([False] * PROMPT + [True] * response)
    sampled_T[[PROMPT + t for t in masked]] = False
    length = PROMPT + response
    return Sample(
        index=position,
        position=position,
        tokens_T=np.arange(length, dtype=np.int32),
        sampled_T=sampled_T,
        logprobs_T=np.zeros(length, np.float32),
        version_T=np.full(length, -1, np.int32),
        ending=ending,
        text="",
        reward=reward,
    )


@pytest.fixture
def make_group() -> Callable[..., Group]:
    """Builds a group from rewards; `responses` are lengths, `masked` places within the response."""

    def make(*rewards, responses=None, masked=(), index=0) -> Group:
        lengths = responses or [3] * len(rewards)
        samples = tuple(
            make_sample(reward, position=place, response=length, masked=masked)
            for place, (reward, length) in enumerate(zip(rewards, lengths, strict=True))
        )
        prompt_T = np.arange(PROMPT, dtype=np.int32)
        prompt = Prompt(index=index, tokens_T=prompt_T, text="", content="")
        return Group(prompt=prompt, samples=samples)

    return make


@pytest.fixture
def with_columns() -> Callable[..., Group]:
    """Draws the named columns of a group; 0 where nothing was sampled, as every column is."""

    def draw(group: Group, *names: str, seed: int = 0) -> Group:
        rng = np.random.default_rng(seed)
        assert set(names) <= set(COLUMNS)

        def column(sample: Sample) -> np.ndarray:
            return np.where(sample.sampled_T, -3 * rng.random(sample.num_tokens), 0).astype("f4")

        return replace(group, **{name: tuple(map(column, group.samples)) for name in names})

    return draw
