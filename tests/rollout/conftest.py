"""Fixtures over the fakes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tandem.rollout import EventLoop

sys.path.append(str(Path(__file__).parent))  # users' functions are found by dotted path
spec = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("fakes.py"))
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)


@pytest.fixture
def events():
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def engine_of():
    return fakes.StepEngine


@pytest.fixture
def reward_of():
    return fakes.LateReward


@pytest.fixture
def stage_of(events):
    def make(engine, reward, **choice):
        return fakes.build_stage(engine, reward, events, **choice)

    return make


@pytest.fixture(scope="session")
def stages():
    """The module of fakes."""
    return fakes
