import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tandem.checkpoint import torch_dist
from tandem.errors import CheckpointError

TENSORS = {
    "model.a": torch.randn(3, 4, dtype=torch.bfloat16),
    "model.b": torch.randn(5),
    "optimizer.moment.b": torch.randn(5),
    "optimizer.step": torch.tensor(12, dtype=torch.int64),
}


def _empty(prefix: str = "") -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(t) for name, t in TENSORS.items() if name.startswith(prefix)}


def test_what_was_saved_is_loaded_in_place_bit_for_bit(tmp_path):
    extra = {"data": {"epoch": 1, "place": [3, 4]}, "random_state": b"\x00\xff", "seed": 7}
    folder = torch_dist.save(tmp_path / "run", 20, TENSORS, extra)
    assert folder == tmp_path / "run" / "iter_0000020"
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "20\n"
    empty = _empty()
    parameter = torch.nn.Parameter(torch.zeros(5))
    empty["model.b"] = parameter
    assert torch_dist.load(tmp_path / "run", empty) == extra
    for name, tensor in TENSORS.items():
        assert empty[name].equal(tensor), name
    assert empty["model.b"] is parameter
    assert parameter.requires_grad


def test_weights_alone_can_be_loaded_in_another_dtype(tmp_path):
    torch_dist.save(tmp_path, 0, TENSORS)
    empty = {name: t.double() for name, t in _empty("model.").items()}
    torch_dist.load(tmp_path, empty, prefix="model.")
    assert empty["model.a"].equal(TENSORS["model.a"].double())


def test_every_difference_is_reported_and_nothing_is_read(tmp_path):
    torch_dist.save(tmp_path, 0, TENSORS)
    wanted = _empty() | {"model.b": torch.zeros(6), "model.new": torch.zeros(1)}
    del wanted["optimizer.step"]
    with pytest.raises(CheckpointError) as caught:
        torch_dist.load(tmp_path, wanted)
    text = str(caught.value)
    assert "missing: model.new" in text
    assert "not known: optimizer.step" in text
    assert "model.b is (5,), wanted (6,)" in text
    assert wanted["model.a"].eq(0).all()


def test_an_iteration_can_be_saved_again(tmp_path):
    torch_dist.save(tmp_path, 5, TENSORS, {"value": 1})
    torch_dist.save(tmp_path, 5, {"model.a": torch.ones(2)}, {"value": 2})
    only = {"model.a": torch.zeros(2)}
    assert torch_dist.load(tmp_path, only) == {"value": 2}
    assert only["model.a"].eq(1).all()


def test_an_older_iteration_can_be_chosen(tmp_path):
    for i in (3, 12):
        torch_dist.save(tmp_path, i, {"model.a": torch.full((2,), float(i))})
    torch_dist.save(tmp_path, "release", {"model.a": torch.zeros(2)})
    assert torch_dist.complete_iterations(tmp_path) == ["release", 3, 12]
    assert torch_dist.latest(tmp_path) == "release"
    read = {"model.a": torch.zeros(2)}
    torch_dist.load(tmp_path, read, 3)
    assert read["model.a"].eq(3).all()


@pytest.mark.parametrize("hurt", ["shorten", "remove", "unmark"])
def test_an_incomplete_iteration_is_refused_and_the_complete_ones_named(tmp_path, hurt):
    torch_dist.save(tmp_path, 1, TENSORS)
    folder = torch_dist.save(tmp_path, 2, TENSORS)
    data = next(folder.glob("*.distcp"))
    if hurt == "shorten":
        data.write_bytes(data.read_bytes()[:-1])
    elif hurt == "remove":
        data.unlink()
    else:
        (folder / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not complete.*; complete in .*: 1 "):
        torch_dist.load(tmp_path, _empty())
    assert torch_dist.complete_iterations(tmp_path) == [1]


def test_damage_inside_a_file_is_an_error_of_ours(tmp_path):
    folder = torch_dist.save(tmp_path, 2, TENSORS)
    data = next(folder.glob("*.distcp"))
    data.write_bytes(b"\x00" * data.stat().st_size)
    with pytest.raises(CheckpointError, match=r"reading .* failed"):
        torch_dist.load(tmp_path, _empty())


def test_half_a_checkpoint_of_megatron_is_not_complete(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    (tmp_path / "iter_0000004").mkdir()
    (tmp_path / "iter_0000004" / "common.pt").touch()
    with pytest.raises(CheckpointError, match="is not complete"):
        torch_dist.load(tmp_path, {})


def test_a_later_format_is_refused(tmp_path):
    folder = torch_dist.save(tmp_path, 2, TENSORS)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        torch_dist.load(tmp_path, _empty())


def test_a_root_without_or_with_a_strange_tracker_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no latest_checkpointed_iteration\.txt"):
        torch_dist.latest(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("newest")
    with pytest.raises(CheckpointError, match="says 'newest'"):
        torch_dist.latest(tmp_path)


def test_two_ranks_save_shards_that_one_process_reads(tmp_path):
    script = Path(__file__).with_name("save_with_ranks.py")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=120)
    assert torch_dist.complete_iterations(tmp_path / "root") == [7, 8]
    read = {"model.sharded": torch.zeros(10, 4), "model.same": torch.zeros(3)}
    torch_dist.load(tmp_path / "root", read, 8)
    assert read["model.sharded"].equal(torch.arange(40.0).reshape(10, 4))
    # what goes wrong on the first rank reaches both: none waits for ever
    for rank in (0, 1):
        assert (tmp_path / f"rank{rank}.heard").exists()
        assert (tmp_path / f"rank{rank}.refused").exists()
