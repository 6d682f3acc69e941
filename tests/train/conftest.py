"""A tiny decoder and groups of samples to learn from."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.algo import advantage
from tandem.config import AlgoConfig, BatchConfig, OptimConfig
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape
from tandem.packing import pack
from tandem.train import Beside, Learning, LocalTrainer, schedule_of
from tandem.train.critic import Critic, ValueModel
from tandem.train.descent import Descent
from tandem.train.lora import TARGETS, Adapters
from tandem.types import Ending, Group, Prompt, Sample, StepStats

torch.set_num_threads(1)

SHAPE = Shape(
    family="qwen3",
    num_layers=2,
    width=32,
    ffn=48,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=61,
    eps=1e-6,
    rope_theta=1e4,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=64,
)


@pytest.fixture
def make_decoder() -> Callable[..., Decoder]:
    """Builds the tiny decoder with weights drawn from a seed, large enough to matter."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Decoder:
        decoder = Decoder(replace(SHAPE, **changes), dtype, "cpu")
        decoder.init_random(seed)
        with torch.no_grad():
            for parameter in decoder.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)
        return decoder

    return make


@pytest.fixture
def make_trainer(make_decoder) -> Callable[..., LocalTrainer]:
    """Builds a trainer; flags go to the section that has them."""

    def make(
        *,
        algo=None,
        batch=None,
        optim=None,
        reference=None,
        teacher=None,
        decoder=None,
        step_size=8,
        lora=None,
        **more,
    ) -> LocalTrainer:
        optim = OptimConfig(**({"lr": 1e-3, "lr_decay_style": "constant"} | (optim or {})))
        learning = Learning(
            algo=AlgoConfig(**(algo or {})),
            batch=BatchConfig(**({"use_dynamic_batch_size": True, "max_tokens_per_gpu": 64}
                                 | (batch or {}))),
            optim=optim,
            schedule=schedule_of(optim, step_size=step_size, num_rollouts=10 * step_size),
            step_size=step_size,
            **more,
        )  # fmt: skip
        decoder = make_decoder() if decoder is None else decoder
        critic = adapters = None
        if learning.algo.has_critic:
            model = ValueModel(decoder)
            descent = Descent(model.named_parameters(), optim, learning.schedule, step_size)
            critic = Critic(model, descent, learning.recompute)
        if lora is not None:
            adapters = Adapters(decoder, **({"targets": TARGETS, "seed": 0} | lora))
        beside = Beside(reference=reference, teacher=teacher, critic=critic, adapters=adapters)
        return LocalTrainer(decoder, learning, beside=beside)

    return make


@pytest.fixture
def learn() -> Callable[..., StepStats]:
    """One rollout's training, as the loop does it."""

    def one_rollout(trainer: LocalTrainer, groups: list[Group]) -> StepStats:
        learning = trainer._learning
        groups = advantage(trainer.annotate(groups), learning.algo, learning.hooks)
        return trainer.step_on(pack(groups, trainer.layout, learning.batch, learning.algo))

    return one_rollout


@pytest.fixture
def make_groups() -> Callable[..., list[Group]]:
    """Draws `count` groups of four samples of different lengths; rewards are all but one judged."""

    def make(count: int = 2, seed: int = 0) -> list[Group]:
        rng = np.random.default_rng(seed)
        groups = []
        for index in range(count):
            prompt_T = rng.integers(1, SHAPE.vocab, rng.integers(2, 9)).astype(np.int32)
            samples = tuple(_sample(rng, prompt_T, index * 4 + i, i) for i in range(4))
            prompt = Prompt(index=index, tokens_T=prompt_T, text="", content="")
            groups.append(Group(prompt=prompt, samples=samples))
        return groups

    return make


def _sample(rng: np.random.Generator, prompt_T: np.ndarray, index: int, position: int) -> Sample:
    response_T = rng.integers(1, SHAPE.vocab, rng.integers(1, 20)).astype(np.int32)
    tokens_T = np.concatenate([prompt_T, response_T])
    sampled_T = np.arange(len(tokens_T)) >= len(prompt_T)
    return Sample(
        index=index,
        position=position,
        tokens_T=tokens_T,
        sampled_T=sampled_T,
        logprobs_T=np.where(sampled_T, -4 * rng.random(len(tokens_T)), 0).astype(np.float32),
        version_T=np.where(sampled_T, 0, -1).astype(np.int32),
        ending=Ending.STOP,
        text="",
        reward=None if index == 5 else float(rng.random()),
    )
