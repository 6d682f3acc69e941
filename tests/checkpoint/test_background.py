"""A save in the background holds the state of its moment, and hides no fault."""

import threading

import pytest
import torch
import torch.distributed as dist

from tandem.checkpoint import torch_dist
from tandem.checkpoint.background import BackgroundSaves
from tandem.checkpoint.pieces import Piece

WHOLE = torch.arange(40.0).reshape(10, 4)


def test_training_goes_on_while_the_earlier_state_is_written(tmp_path):
    saves, state = (
        BackgroundSaves(),
        {"model.a": WHOLE.clone(), "optimizer.step": torch.tensor(3.0)},
    )
    may_go_on, is_held = threading.Event(), threading.Event()

    def hold(stage: str) -> None:
        if stage == "started":
            is_held.set()
            assert may_go_on.wait(20)

    folder = saves.save(tmp_path, 4, state, {"seed": 1}, on_stage=hold)
    assert is_held.wait(20)
    for tensor in state.values():
        tensor.zero_()  # the next step
    assert not folder.exists()
    may_go_on.set()
    saves.wait()
    read = {"model.a": torch.zeros(10, 4), "optimizer.step": torch.zeros(())}
    assert torch_dist.load(tmp_path, read) == {"seed": 1}
    assert read["model.a"].equal(WHOLE) and read["optimizer.step"] == 3


def test_saves_follow_one_another_and_the_last_one_counts(tmp_path):
    saves, state = BackgroundSaves(), {"model.a": torch.zeros(3)}
    for iteration in range(3):
        state["model.a"].fill_(iteration)
        saves.save(tmp_path, iteration, state)
    saves.wait()
    assert torch_dist.complete_iterations(tmp_path) == [0, 1, 2]
    for iteration in range(3):
        read = {"model.a": torch.zeros(3)}
        torch_dist.load(tmp_path, read, iteration)
        assert read["model.a"].eq(iteration).all()


def test_a_save_that_failed_is_heard_of_once_and_the_next_works(tmp_path):
    saves, state = BackgroundSaves(), {"model.a": torch.ones(3)}
    (tmp_path / "file").touch()
    saves.save(tmp_path / "file" / "below", 1, state)
    with pytest.raises(OSError):
        saves.wait()
    saves.save(tmp_path / "root", 2, state)
    saves.wait()
    assert torch_dist.latest(tmp_path / "root") == 2


def work(rank: int, world: int) -> list[int]:
    """Saves in the background on a group of its own, beside collectives of a step."""
    from pathlib import Path
    from tempfile import mkdtemp

    box = [mkdtemp()]
    dist.broadcast_object_list(box)
    root, own = Path(box[0]), dist.new_group()
    saves = BackgroundSaves(own)
    half = WHOLE[5 * rank : 5 * rank + 5].clone()
    for iteration in range(2):
        piece = Piece(tensor=half, global_shape=(10, 4), starts=(5 * rank, 0))
        saves.save(root, iteration, {"model.a": piece})
        for _ in range(50):  # training does not wait
            dist.all_reduce(torch.ones(8))
        half += 100
    saves.wait()
    found = []
    for iteration in range(2):
        read = {"model.a": torch.zeros(10, 4)}
        torch_dist.load(root, read, iteration)
        found.append(int((read["model.a"] - WHOLE).unique().item()))
    return found


def test_several_processes_save_beside_the_collectives_of_training(on_ranks):
    assert on_ranks(work, 2) == [[0, 100], [0, 100]]
