"""Engines over fake servers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.fleet import Fleet
from tandem.engine.sglang.line import Line
from tandem.engine.sglang.members import Member
from tandem.engine.sglang.server import Server
from tandem.engine.sglang.weights import HandleCarrier
from tandem.types import Canary, Request, SampleKey, Sampling, Weights

spec = importlib.util.spec_from_file_location("sglang_fake", Path(__file__).with_name("fake.py"))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


@pytest.fixture
def hosted():
    """Makes fake servers; all end with the test."""
    made = []

    def make(state=None):
        made.append(fake.Hosted(state or fake.FakeServer()))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def engine_over():
    """Makes engines over servers by address, with weights of version 0."""
    made = []

    def make(*urls, can_sleep=False, router=None, **limits):
        line = Line()
        members = [
            Member(Server(line, url, name=f"server {place}"), None)
            for place, url in enumerate(urls)
        ]
        carrier = HandleCarrier(line, 1 << 20)
        fleet = Fleet(line, members, carrier, can_sleep=can_sleep, router=router)
        engine = SglangEngine(line, fleet, **{"patience_s": 0.01, **limits})
        made.append(engine)
        fleet.until_up()
        engine.update(weights(0))
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def one(hosted, engine_over):
    """A fake server's state, and an engine over it."""
    server = hosted()
    return server.state, engine_over(server.url)


def weights(version, size=4):
    named = [("model.embed_tokens.weight", torch.full((size, 2), float(version)))]
    canary = Canary(tokens_T=np.arange(4, dtype=np.int32), read=np.float32(fake.CANARY).copy)
    return Weights(version=version, named=named, canary=canary)


def request(name="a", *, prompt=5, limit=20, group=None, **sampling):
    return Request(
        id=name,
        tokens_T=np.arange(prompt, dtype=np.int32),
        sampling=Sampling(max_new_tokens=limit, **sampling),
        key=SampleKey(seed=1, prompt=2, sample=3),
        group=group,
    )


def is_whole(completion, *, prompt=5, limit=20):
    """Whether every token is there once, in order."""
    wanted = [fake.token_at(prompt + place) for place in range(limit)]
    return completion.tokens_C.tolist() == wanted


@pytest.fixture
def ways():
    """What tests share: `weights`, `request`, `is_whole` and the module of the fake server."""

    class Ways:
        pass

    Ways.weights, Ways.request = staticmethod(weights), staticmethod(request)
    Ways.is_whole, Ways.fake = staticmethod(is_whole), fake
    return Ways
