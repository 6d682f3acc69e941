"""Groups of samples with rewards, and columns about them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.types import COLUMNS, Batch, Ending, Group, Prompt, Sample

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


BOUNDS = (0, 9, 10, 27, 33, 40)
"""Five sequences of a row; the last is padding."""


@pytest.fixture
def make_row() -> Callable[..., Batch]:
    """Draws a packed row of 40 tokens with holes in its mask, and the named columns of it."""

    def make(*names: str, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def draw(low: float, high: float) -> torch.Tensor:
            return torch.rand(BOUNDS[-1], generator=generator) * (high - low) + low

        mask_T = (draw(0, 1) < 0.7).float()
        mask_T[[end - 1 for end in BOUNDS[1:]]] = 0
        mask_T[BOUNDS[-2] :] = 0
        ranges = {"advantages_T": (-2.0, 2.0), "returns_T": (-1.0, 1.0), "values_T": (-1.0, 1.0)}
        columns = {name: draw(*ranges.get(name, (-2.0, 0.0))) for name in sorted(names)}
        return Batch(
            tokens_T=torch.zeros(BOUNDS[-1], dtype=torch.int64),
            targets_T=torch.zeros(BOUNDS[-1], dtype=torch.int64),
            positions_T=torch.zeros(BOUNDS[-1], dtype=torch.int64),
            mask_T=mask_T,
            weight_T=mask_T * draw(0.01, 0.05),
            bounds_S=torch.tensor(BOUNDS, dtype=torch.int32),
            longest=17,
            denominator=4.0,
            **columns,
        )

    return make
