"""Saves in the background and in Hugging Face form, as flags of a run."""

import importlib.util
from pathlib import Path

import torch

from tandem.checkpoint import torch_dist
from tandem.checkpoint.hugging_face import read_hugging_face
from tandem.models.shape import read_shape

DRIVE = Path(__file__).with_name("drive.py")
spec = importlib.util.spec_from_file_location("drive", DRIVE)
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)


def test_a_run_that_saves_in_the_background_and_whose_state_sleeps_resumes_to_the_same_bits(
    tiny, tmp_path
):
    wanted = driver.drive(
        tmp_path / "one", "never", tiny.argv(tmp_path / "straight", num_rollout=4)
    )
    flags = ("--async-save", "--offload-train", "--save-hf", f"{tmp_path}/hf/{{rollout_id}}")
    for num_rollout in (2, 4):
        argv = tiny.argv(tmp_path / "run", *flags, num_rollout=num_rollout)
        digest = driver.drive(tmp_path / "two", "never", argv)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()
    assert digest == wanted
    times = {"perf/sleep_time", "perf/wake_up_time"}
    for folder, has_slept in (("straight", False), ("run", True)):
        text = (tmp_path / folder / "metrics.jsonl").read_text()
        assert all((f'"{name}"' in text) is has_slept for name in times)
    assert torch_dist.complete_iterations(tmp_path / "run") == [0, 1, 2, 3]
    shape = read_shape(tmp_path / "hf" / "3")
    for iteration in range(4):
        read = dict(read_hugging_face(shape, tmp_path / "hf" / str(iteration)))
        saved = {torch_dist.MODEL + name: torch.zeros_like(t) for name, t in read.items()}
        torch_dist.load(tmp_path / "run", saved, iteration, prefix=torch_dist.MODEL)
        assert all(tensor.equal(saved[torch_dist.MODEL + name]) for name, tensor in read.items())
