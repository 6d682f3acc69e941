"""A data source of the user's own goes on where it saved itself."""

import json
from contextlib import ExitStack

import pytest
import torch

from tandem.config import load_config
from tandem.errors import HookError
from tandem.loop import train
from tandem.rollout import EventLoop
from tandem.runtime.local import build

SOURCE = ("--data-source-path", "examples.hooks.data_source.Sums")
WITHOUT_PROMPTS = ("--disable-rollout-global-dataset",)
PARTIAL = ("--partial-rollout", "--over-sampling-batch-size", "6")
CUT_OFF = ("--sglang-server-concurrency", "6")


@pytest.fixture
def drive(tiny, tmp_path):
    """Runs up to so many rollouts; gives the digest of the trainer."""

    def run(name, num_rollout):
        dump = ("--save-debug-rollout-data", f"{tmp_path}/{name}/{{rollout_id}}.pt")
        more = (*SOURCE, *WITHOUT_PROMPTS, *PARTIAL, *CUT_OFF, *dump)
        argv = tiny.argv(tmp_path / name / "run", *more, num_rollout=num_rollout)
        with ExitStack() as stack:
            events = EventLoop()
            stack.callback(events.close)
            stages, cfg = build(load_config(argv), events, stack)
            train(cfg, stages)
            return stages.trainer.state_digest()

    return run


def test_a_run_that_goes_on_gets_the_prompts_and_bits_of_one_that_was_not_stopped(drive, tmp_path):
    whole = drive("whole", 4)
    drive("parts", 1)
    drive("parts", 2)
    assert drive("parts", 4) == whole
    for step in range(4):
        ours, theirs = (
            torch.load(tmp_path / f"{name}/{step}.pt", weights_only=True)["samples"]
            for name in ("whole", "parts")
        )
        assert [one["tokens"] for one in ours] == [one["tokens"] for one in theirs]
        assert [one["index"] for one in ours] == [one["index"] for one in theirs]


def test_a_place_that_cannot_be_loaded_stops_the_run(drive, tmp_path):
    drive("run", 1)
    place = tmp_path / "run/run/sums_0.json"
    assert json.loads(place.read_text())["next"] >= 4
    place.unlink()
    with pytest.raises(HookError, match=r"--data-source-path .* raised FileNotFoundError on load"):
        drive("run", 2)
