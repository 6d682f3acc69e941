"""Tiny decoders and engines."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.models.build import build_decoder
from tandem.models.decoder import Decoder
from tandem.models.mixture import Mixture
from tandem.models.shape import Shape
from tandem.types import Request, SampleKey, Sampling

torch.set_num_threads(1)

TINY = Shape(
    family="qwen3",
    num_layers=2,
    width=32,
    ffn=64,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=61,
    eps=1e-6,
    rope_theta=10000.0,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=512,
    eos_token_ids=(60,),
)


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    """A small decoder whose tokens depend on all that went before."""
    return tiny_decoder()


@pytest.fixture(scope="session")
def mixed() -> Decoder:
    """Such a decoder with experts in its first and last layer."""
    mixture = Mixture(num_experts=6, per_token=2, ffn=16, layers=(0, 2), normalises=True)
    return tiny_decoder(replace(TINY, num_layers=3, mixture=mixture))


def tiny_decoder(shape: Shape = TINY, seed: int = 0) -> Decoder:
    decoder = build_decoder(shape, torch.float32, "cpu", init="random", seed=seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() >= 2:
                parameter *= 12  # the usual random weights make all tokens equally likely
    return decoder


@pytest.fixture(scope="session")
def engine_of(decoder):
    """Makes engines over the decoder; keywords are settings, or arguments of the engine."""

    def make(
        decoder=decoder,
        tokenizer=None,
        eos_token_ids=(60,),
        is_late=None,
        records_experts=False,
        **settings,
    ):
        plain = {
            "engine_block_size": 8,
            "engine_cache_tokens": 4096,
            "engine_max_running": 32,
            "engine_prefill_tokens": 64,
        }
        cfg = EngineConfig(**(plain | settings))
        how = {"is_late": is_late, "records_experts": records_experts}
        return TorchEngine(decoder, tokenizer, cfg, "cpu", eos_token_ids, **how)

    return make


@pytest.fixture(scope="session")
def ask():
    """Makes requests with prompts drawn from their number; the sample is the place in a group."""

    def make(prompt=0, sample=0, length=None, tokens=None, seed=7, **sampling):
        rng = np.random.default_rng(prompt)
        size = int(rng.integers(3, 40)) if length is None else length
        drawn = rng.integers(0, 60, size=size).astype(np.int32)
        return Request(
            id=f"{prompt}-{sample}",
            tokens_T=drawn if tokens is None else np.asarray(tokens, dtype=np.int32),
            sampling=Sampling(**({"max_new_tokens": 20, "ignore_eos": True} | sampling)),
            key=SampleKey(seed=seed, prompt=prompt, sample=sample),
            group=f"{prompt}",
        )

    return make
