from pathlib import Path

import pytest

from tandem.config import load_config, read_config

SMALL = (
    "--hf-checkpoint model --prompt-data train.jsonl --num-rollout 6 --rollout-batch-size 4 "
    "--n-samples-per-prompt 8 --rollout-max-response-len 64 --rm-type math"
)
"""The least that a run needs."""


@pytest.fixture
def small():
    """The words of the least that a run needs, and any after them; flags can be left out."""

    def words(line="", without=""):
        kept = SMALL.replace(without, "")
        return [*kept.split(), *line.split()]

    return words


@pytest.fixture
def settings(small):
    """The Config of a small run with these flags."""
    return lambda line="", without="": load_config(small(line, without))


@pytest.fixture
def read(small):
    """The Config of a small run with these flags, and what is wrong with it."""
    return lambda line="": read_config(small(line))


@pytest.fixture
def launch():
    """The launch of a 4B model on eight GPUs, as scripts of the dialect have it."""
    return (Path(__file__).parent / "launch.txt").read_text().split()
