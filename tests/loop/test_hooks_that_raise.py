"""A hook that raises in a run stops it or costs a sample, as docs/rollout.md says; it is named."""

import json
from contextlib import ExitStack

import pytest
import torch

from tandem.config import load_config
from tandem.errors import HookError
from tandem.loop import train
from tandem.rollout import EventLoop
from tandem.runtime.local import build

HERE = "spoiled."
CUT_OFF = ("--partial-rollout", "--over-sampling-batch-size", "6", "--sglang-server-concurrency")

EVALUATES_NOTHING = ("--eval-function-path", HERE + "nothing")
MANY = ("--n-samples-per-prompt", "16")  # 64 failures end a run in which nothing worked


@pytest.fixture
def drive(tiny, tmp_path, users_functions):
    """Two rollouts with more flags; gives the run folder."""

    def run(*flags):
        argv = tiny.argv(tmp_path / "run", *flags, num_rollout=2)
        with ExitStack() as stack:
            events = EventLoop()
            stack.callback(events.close)
            stages, cfg = build(load_config(argv), events, stack)
            train(cfg, stages)
        return tmp_path / "run"

    return run


@pytest.mark.parametrize(
    ("flag", "name", "more", "where"),
    [
        ("--dynamic-sampling-filter-path", "broken", (), "the group of prompt"),
        ("--buffer-filter-path", "broken", (*CUT_OFF, "6"), "waiting groups"),
        ("--rollout-sample-filter-path", "broken", (), "the 4 kept groups"),
        ("--rollout-all-samples-process-path", "broken", (), "all 4 groups of a round"),
        ("--rollout-function-path", "broken", EVALUATES_NOTHING, "rollout 0"),
        ("--eval-function-path", "broken", (), "rollout 0"),
        ("--data-source-path", "Source", ("--disable-rollout-global-dataset",), "get_samples"),
        ("--custom-convert-samples-to-train-data-path", "broken", (), "the samples of rollout 0"),
        ("--rollout-data-postprocess-path", "broken", (), "this rollout"),
        ("--custom-generate-function-path", "generate_broken", MANY, "sample"),
    ],
)  # fmt: skip
def test_the_run_stops_and_says_which_hook_raised_on_what(drive, flag, name, more, where):
    with pytest.raises(HookError) as caught:
        drive(flag, HERE + name, *more)
    said = str(caught.value)
    assert f"{flag} {HERE}{name} raised LookupError on " in said and "nothing here" in said
    assert where in said


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--custom-generate-function-path", "generate_half"),
        ("--rollout-sample-hook-path", "hook_half"),
    ],
)
def test_a_sample_that_a_hook_raised_on_is_not_trained_and_the_run_goes_on(
    drive, tmp_path, caplog, flag, name
):
    run = drive(flag, HERE + name, "--dump-details", f"{tmp_path}/all", "--skip-eval-before-train")
    assert f"{flag} {HERE}{name} raised LookupError on sample 1" in caplog.text
    for step in (0, 1):
        sampled = torch.load(tmp_path / f"all/rollout_data/{step}.pt", weights_only=True)["samples"]
        trained = torch.load(tmp_path / f"all/train_data/{step}.pt", weights_only=True)["samples"]
        fine = [one for one in sampled if one["index"] % 2 == 0]
        assert [one["status"] for one in sampled if one["index"] % 2] == ["failed"] * 8
        assert {tuple(one["tokens"].tolist()) for one in trained} == {
            tuple(one["tokens"]) for one in fine
        }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert sum("train/loss" in row for row in rows) == 2


def test_logs_that_raise_are_warned_of_and_written_here(drive, caplog):
    run = drive(
        "--custom-rollout-log-function-path", HERE + "broken",
        "--custom-eval-rollout-log-function-path", HERE + "broken",
    )  # fmt: skip
    for flag in ("--custom-rollout-log-function-path", "--custom-eval-rollout-log-function-path"):
        assert f"{flag} {HERE}broken raised LookupError" in caplog.text
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert any("rollout/raw_reward" in row for row in rows)
    assert any("eval/heldout" in row for row in rows)
