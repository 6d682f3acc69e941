"""A tiny model with a real tokenizer and chat template, and servers in front of it."""

import importlib.util
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.attention import packed_attention
from tandem.models.build import build_decoder
from tandem.models.shape import Shape
from tandem.server import Recorder, Server, ServerSettings

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["guess a number between 1 and 9", "higher", "lower", "yes, that is it"]
CONTEXT = 512


@dataclass(frozen=True)
class Model:
    """A decoder that was drawn at random, and its tokenizer."""

    tokenizer: Any
    decoder: Any
    shape: Shape

    def engine(self, **settings):
        plain = {
            "engine_block_size": 8,
            "engine_cache_tokens": 8192,
            "engine_max_running": 32,
            "engine_prefill_tokens": 64,
        }
        cfg = EngineConfig(**(plain | settings))
        eos = self.shape.eos_token_ids
        return TorchEngine(self.decoder, self.tokenizer, cfg, "cpu", eos, version=3)

    def tokens(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="session")
def model():
    """A byte-level tokenizer with ChatML, and a decoder of two layers that knows its tokens."""
    path = ROOT / "examples" / "small_model.py"
    spec = importlib.util.spec_from_file_location("small_model", path)
    small_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_model)
    tokenizer = small_model.train_tokenizer(TEXTS, 300)
    shape = Shape(
        family="qwen3",
        num_layers=2,
        width=32,
        ffn=64,
        num_heads=4,
        num_key_heads=2,
        head_size=8,
        vocab=len(tokenizer),
        eps=1e-6,
        rope_theta=10000.0,
        tied=True,
        qkv_bias=False,
        qk_norm=True,
        max_positions=CONTEXT,
        eos_token_ids=(tokenizer.eos_token_id,),
    )
    decoder = build_decoder(shape, torch.float32, "cpu", init="random", seed=0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter *= 12  # the usual random weights make all tokens equally likely
    return Model(tokenizer, decoder, shape)


@dataclass
class Door:
    """A running server, and a client of it."""

    server: Server
    client: aiohttp.ClientSession
    engine: Any

    @property
    def recorder(self) -> Recorder:
        return self.server.recorder

    async def post(self, path, body, *, status=200, **kwargs):
        async with self.client.post(path, json=body, **kwargs) as response:
            got = await response.json(content_type=None)
            assert response.status == status, got
            return got

    async def get(self, path, *, status=200):
        async with self.client.get(path) as response:
            assert response.status == status
            return await response.json(content_type=None)

    async def events(self, path, body, **kwargs):
        """The events of a stream, in order, without the last word."""
        async with self.client.post(path, json={**body, "stream": True}, **kwargs) as response:
            assert response.status == 200, await response.text()
            lines = [line async for line in response.content if line.strip()]
        events = [line.decode().removeprefix("data: ").strip() for line in lines]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]


@pytest.fixture
def door_to(model):
    """Opens servers: `async with door_to() as door`; keywords are settings."""

    @asynccontextmanager
    async def opened(engine=None, recorder=None, tokenizer=None, **settings):
        engine = engine or model.engine()
        plain = ServerSettings(model="tiny", max_context=CONTEXT)
        tokenizer = tokenizer or model.tokenizer
        server = Server(engine, tokenizer, replace(plain, **settings), recorder)
        url = await server.start()
        async with aiohttp.ClientSession(url) as client:
            yield Door(server, client, engine)
        await server.close()
        engine.close()

    return opened


@pytest.fixture
def logprobs_of(model):
    """What a fresh forward of the decoder says of each token of a sequence, 0 of the first."""

    def score(tokens_T, temperature=1.0):
        tokens = torch.as_tensor(np.asarray(tokens_T), dtype=torch.int64)
        size = len(tokens)
        bounds_S = torch.tensor([0, size], dtype=torch.int32)

        def attend(layer, q_TNH, k_TKH, v_TKH):
            return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, size)

        with torch.no_grad():
            hidden_TD = model.decoder(tokens, torch.arange(size), attend, None)
            logits_TV = hidden_TD @ model.decoder.head_weight.T / temperature
        told_T = torch.log_softmax(logits_TV, -1)[:-1].gather(1, tokens[1:, None])[:, 0]
        return np.concatenate([[0.0], told_T.numpy()])

    return score
