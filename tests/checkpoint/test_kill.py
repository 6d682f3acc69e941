"""SIGKILL at every stage of a save: the last finished save stays, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tandem.checkpoint import torch_dist
from tandem.checkpoint.find import decide_load
from tandem.errors import CheckpointError

SCRIPT = Path(__file__).with_name("kill_in_save.py")


def _kill_everywhere(folder: Path, first: int, second: int) -> None:
    command = [sys.executable, str(SCRIPT), str(folder), str(first), str(second)]
    subprocess.run(command, check=True, timeout=120)


def _loaded(root: Path) -> tuple[torch_dist.Iteration, float]:
    """What the tracker points at and the value that every tensor and the extra state hold."""
    tensors = {
        "model.weight": torch.zeros(32, 32),
        "optimizer.weight": torch.zeros(32, 32),
        "optimizer.step": torch.tensor(0.0),
    }
    extra = torch_dist.load(root, tensors)
    values = {float(value) for tensor in tensors.values() for value in tensor.flatten()}
    assert values == {float(extra["value"])}
    return torch_dist.latest(root), values.pop()


def _save_again(root: Path) -> None:
    """Whatever the kill left, the next save works and leaves nothing hidden."""
    tensors = {
        "model.weight": torch.full((32, 32), 3.0),
        "optimizer.weight": torch.full((32, 32), 3.0),
        "optimizer.step": torch.tensor(3.0),
    }
    torch_dist.save(root, 60, tensors, {"value": 3})
    assert _loaded(root) == (60, 3.0)
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_a_kill_in_a_later_save_leaves_the_earlier_one(tmp_path):
    _kill_everywhere(tmp_path, 20, 40)
    for stage in ("started", "tensors", "written", "renamed"):
        assert _loaded(tmp_path / stage) == (20, 1.0), stage
    for stage in ("aside", "tracked"):  # these were through
        assert _loaded(tmp_path / stage) == (40, 2.0), stage
    for root in tmp_path.iterdir():
        _save_again(root)


def test_a_kill_in_saving_an_iteration_again_leaves_the_old_or_the_new_one(tmp_path):
    _kill_everywhere(tmp_path, 20, 20)
    for stage in ("started", "tensors", "written", "aside"):
        assert _loaded(tmp_path / stage) == (20, 1.0), stage
    for stage in ("renamed", "tracked"):
        assert _loaded(tmp_path / stage) == (20, 2.0), stage
    for root in tmp_path.iterdir():
        _save_again(root)
        assert torch_dist.complete_iterations(root) == [20, 60]


def test_a_kill_in_the_first_save_starts_anew_or_resumes_it(tmp_path):
    _kill_everywhere(tmp_path, -1, 3)
    for stage in ("started", "tensors", "written"):
        root = str(tmp_path / stage)
        with pytest.raises(CheckpointError, match="no weights to start from"):
            decide_load(load=root, save=root, ref_load=None, hf_checkpoint=None)
        found = decide_load(load=root, save=root, ref_load=None, hf_checkpoint=None, init="random")
        assert (found.kind, found.start_rollout_id, found.is_fallback) == ("random", 0, True)
    for stage in ("renamed", "tracked"):
        root = str(tmp_path / stage)
        found = decide_load(load=root, save=root, ref_load=None, hf_checkpoint=None)
        assert (found.is_resume, found.iteration, found.start_rollout_id) == (True, 3, 4)
    for root in tmp_path.iterdir():
        _save_again(root)
