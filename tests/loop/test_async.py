"""Sampling ahead of training equals `train.py` where nothing overlaps, and else repeats."""

import importlib.util
import json
import signal
from pathlib import Path

import pytest

DRIVE = Path(__file__).with_name("drive.py")
spec = importlib.util.spec_from_file_location("drive", DRIVE)
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)

ONE_STEP = ("--asynchronous", "one-step")
FULL = ("--asynchronous", "full")
NUM_ROLLOUT = 4


def rollouts_of(journal: Path) -> dict[int, str]:
    """What each rollout gave; one that was sampled twice must have given the same."""
    seen: dict[int, str] = {}
    for line in journal.read_text().splitlines():
        row = json.loads(line)
        assert seen.setdefault(row["step"], row["digest"]) == row["digest"], row["step"]
    return seen


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row for row in rows if "train/loss" in row]


def run_to_the_end(tiny, folder: Path, *flags: str, num_rollout: int = NUM_ROLLOUT):
    """What each rollout gave, and every trained tensor at the end."""
    argv = tiny.argv(folder / "run", *flags, num_rollout=num_rollout)
    digest = driver.drive(folder / "journal", "never", argv)
    return rollouts_of(folder / "journal"), digest


@pytest.fixture(scope="module")
def synchronous(tiny, tmp_path_factory):
    return run_to_the_end(tiny, tmp_path_factory.mktemp("synchronous"))


@pytest.fixture(scope="module")
def one_step(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step")
    return run_to_the_end(tiny, folder, *ONE_STEP), folder / "run"


@pytest.mark.parametrize("mode", [ONE_STEP, FULL])
def test_staleness_0_equals_the_synchronous_run(mode, tiny, synchronous, tmp_path):
    assert run_to_the_end(tiny, tmp_path, *mode, "--max-staleness", "0") == synchronous
    assert {row["rollout/staleness/max"] for row in rows_of(tmp_path / "run")} == {0}


def test_one_step_off_twice_gives_the_same_bits(tiny, synchronous, one_step, tmp_path):
    first, run = one_step
    assert run_to_the_end(tiny, tmp_path, *ONE_STEP) == first
    assert first[1] != synchronous[1]
    assert first[0][0] == synchronous[0][0], "the first rollout has nothing to be ahead of"
    staleness = [row["rollout/staleness/max"] for row in rows_of(run)]
    assert staleness == [0, 1, 1, 1]
    assert all(row["rollout/staleness/mixed"] == 0 for row in rows_of(run))


@pytest.mark.parametrize("moment", ["rollout:2", "train:2", "save:1"])
def test_one_step_off_killed_resumes_to_the_same_bits(moment, tiny, one_step, tmp_path, run_script):
    journal, argv = tmp_path / "journal", tiny.argv(tmp_path / "run", *ONE_STEP, num_rollout=4)
    killed = run_script(str(DRIVE), str(journal), moment, *argv)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    digest = driver.drive(journal, "never", argv)
    assert (rollouts_of(journal), digest) == one_step[0]
    assert [row["rollout/staleness/max"] for row in rows_of(tmp_path / "run")] == [0, 1, 1, 1]


def test_weights_are_published_at_the_interval_and_where_they_are_needed(tiny, tmp_path):
    flags = ("--update-weights-interval", "3", "--eval-interval", "100", "--save-interval", "100")
    run_to_the_end(tiny, tmp_path, *ONE_STEP, *flags, num_rollout=5)
    rows = rows_of(tmp_path / "run")
    assert [row["rollout/staleness/max"] for row in rows] == [0, 1, 2, 3, 1]
    assert ["perf/update_weights_time" in row for row in rows] == [0, 0, 1, 0, 1]


def test_a_synchronous_run_goes_on_with_the_rollout_that_was_ahead(tiny, tmp_path):
    run_to_the_end(tiny, tmp_path, *ONE_STEP, num_rollout=2)
    rollouts, _ = run_to_the_end(tiny, tmp_path, num_rollout=3)
    assert list(rollouts) == [0, 1, 2]


def test_full_keeps_the_staleness_limit_and_the_order_is_on_record(tiny, tmp_path):
    flags = ("--max-staleness", "2", "--use-tis", "--save-debug-rollout-data")
    dumps = str(tmp_path / "dumps/{rollout_id}.pt")
    rollouts, digest = run_to_the_end(tiny, tmp_path, *FULL, *flags, dumps)
    rows = rows_of(tmp_path / "run")
    assert list(rollouts) == [0, 1, 2, 3] and len(rows) == NUM_ROLLOUT
    assert all(row["rollout/staleness/max"] <= 2 for row in rows)
    order = [json.loads(line) for line in (tmp_path / "run/order.jsonl").open()]
    prompts = [prompt for line in order for prompt, _, _ in line["groups"]]
    assert sorted(prompts) == list(range(16)), "no prompt lost, none doubled"
    again = ("--use-tis", "--load-debug-rollout-data", dumps)
    assert run_to_the_end(tiny, tmp_path / "replay", *again)[1] == digest


def test_full_killed_and_resumed_trains_every_prompt_once(tiny, tmp_path, run_script):
    journal = tmp_path / "journal"
    argv = tiny.argv(tmp_path / "run", *FULL, num_rollout=NUM_ROLLOUT)
    killed = run_script(str(DRIVE), str(journal), "train:2", *argv)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    driver.drive(journal, "never", argv)
    order = [json.loads(line) for line in (tmp_path / "run/order.jsonl").open()]
    assert [line["step"] for line in order] == [0, 1, 2, 3]
    prompts = [prompt for line in order for prompt, _, _ in line["groups"]]
    assert sorted(prompts) == list(range(16))
    assert all(row["rollout/staleness/max"] <= 2 for row in rows_of(tmp_path / "run"))
