"""Dynamic sampling and partial rollouts repeat: killed and resumed runs equal straight ones."""

import importlib.util
import json
import signal
from pathlib import Path

import pytest

from tandem.checkpoint import torch_dist
from tandem.rollout import decode

DRIVE = Path(__file__).with_name("drive.py")
spec = importlib.util.spec_from_file_location("drive", DRIVE)
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)

# few slots, so that answers of one length end at different steps
FLAGS = [
    "--rollout-seed",
    "3",
    "--partial-rollout",
    "--over-sampling-batch-size",
    "7",
    "--sglang-server-concurrency",
    "6",
    "--dynamic-sampling-filter-path",
    "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
]


def rollouts_of(journal: Path) -> dict[int, str]:
    seen: dict[int, str] = {}
    for line in journal.read_text().splitlines():
        row = json.loads(line)
        assert seen.setdefault(row["step"], row["digest"]) == row["digest"], row["step"]
    return seen


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    digest = driver.drive(folder / "journal", "never", tiny.argv(folder / "run", *FLAGS))
    return rollouts_of(folder / "journal"), digest, folder / "run"


def test_the_checkpoint_holds_half_written_answers(straight):
    _, _, run = straight
    extra = torch_dist.read_extra(torch_dist.folder_of(run, 2))
    waiting = decode(extra["unfinished"])
    samples = [sample for group in waiting for sample in group.samples]
    halves = [s for s in samples if s.ending == "abort" and s.sampled_T.any()]
    assert halves and all(s.metadata["start_rollout_id"] <= 2 for s in halves)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert any(row.get("rollout/dynamic_filter/num_dropped") for row in rows)
    assert any(row.get("rollout/num_continued_groups") for row in rows)


@pytest.mark.parametrize("moment", ["rollout:3", "train:4"])
def test_killed_run_goes_on_with_the_same_half_written_answers(
    moment, tiny, straight, tmp_path, run_script
):
    journal, argv = tmp_path / "journal", tiny.argv(tmp_path / "run", *FLAGS)
    killed = run_script(str(DRIVE), str(journal), moment, *argv)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    digest = driver.drive(journal, "never", argv)
    assert (rollouts_of(journal), digest) == straight[:2]
