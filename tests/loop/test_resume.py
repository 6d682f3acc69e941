"""A run that was interrupted, however rudely, ends with the bits of the run that was not."""

import importlib.util
import json
import signal
from pathlib import Path

import pytest
import torch

DRIVE = Path(__file__).with_name("drive.py")
spec = importlib.util.spec_from_file_location("drive", DRIVE)
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)


def rollouts_of(journal: Path) -> dict[int, str]:
    """What each rollout gave, by number; a rollout sampled twice must have given the same."""
    seen: dict[int, str] = {}
    for line in journal.read_text().splitlines():
        row = json.loads(line)
        assert seen.setdefault(row["step"], row["digest"]) == row["digest"], row["step"]
    return seen


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """Six rollouts in one go: what each sampled, and the weights at the end."""
    folder = tmp_path_factory.mktemp("straight")
    digest = driver.drive(folder / "journal", "never", tiny.argv(folder / "run"))
    rollouts = rollouts_of(folder / "journal")
    assert list(rollouts) == [0, 1, 2, 3, 4, 5]
    assert len(set(rollouts.values())) == 6
    return rollouts, digest


def test_three_and_three_rollouts_equal_six(tiny, straight, tmp_path):
    journal = tmp_path / "journal"
    driver.drive(journal, "never", tiny.argv(tmp_path / "run", num_rollout=3))
    digest = driver.drive(journal, "never", tiny.argv(tmp_path / "run"))
    assert (rollouts_of(journal), digest) == straight


def test_going_on_with_other_threads_is_warned_of(tiny, tmp_path, caplog):
    argv = tiny.argv(tmp_path / "run", num_rollout=1)
    driver.drive(tmp_path / "journal", "never", argv)
    driver.drive(tmp_path / "journal", "never", tiny.argv(tmp_path / "run", num_rollout=2))
    assert "its bits will differ" not in caplog.text
    torch.set_num_threads(2)
    driver.drive(tmp_path / "journal", "never", tiny.argv(tmp_path / "run", num_rollout=3))
    torch.set_num_threads(1)
    assert "saved by a process of 1 threads and goes on with 2" in caplog.text


@pytest.mark.parametrize("moment", ["rollout:2", "train:3", "save:2"])
def test_killed_run_resumes_to_the_same_bits(moment, tiny, straight, tmp_path, run_script):
    journal, argv = tmp_path / "journal", tiny.argv(tmp_path / "run")
    killed = run_script(str(DRIVE), str(journal), moment, *argv)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert len(rollouts_of(journal)) < 6
    digest = driver.drive(journal, "never", argv)
    assert (rollouts_of(journal), digest) == straight
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]  # 6: the last evaluation's
    assert [row["step"] for row in rows if "eval/heldout" in row] == [0, 2, 4, 6]
