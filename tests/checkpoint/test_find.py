import pytest
import torch

from tandem.checkpoint import torch_dist
from tandem.checkpoint.find import decide_load, decide_reference
from tandem.errors import CheckpointError

TENSORS = {"model.a": torch.ones(2)}


def _decide(load=None, ref_load=None, hf_checkpoint=None, **more):
    def text(path):
        return None if path is None else str(path)

    return decide_load(
        load=text(load), ref_load=text(ref_load), hf_checkpoint=text(hf_checkpoint), **more
    )


@pytest.fixture
def run(tmp_path):
    """The root of a run that saved rollouts 3 and 19."""
    root = tmp_path / "run"
    for i in (3, 19):
        torch_dist.save(root, i, TENSORS)
    return root


def test_a_checkpoint_is_resumed_after_its_last_rollout(run):
    found = _decide(load=run, ref_load="/nowhere", save=str(run))
    assert (found.kind, found.path, found.iteration) == ("torch_dist", run, 19)
    assert (found.is_resume, found.start_rollout_id, found.is_fallback) == (True, 20, False)
    assert "rollout 19" in found.message


def test_a_step_can_be_chosen(run):
    assert _decide(load=run, ckpt_step=3).start_rollout_id == 4
    with pytest.raises(CheckpointError, match=r"iter_0000004 is not there; complete in .*: 3, 19 "):
        _decide(load=run, ckpt_step=4)


def test_finetune_takes_weights_only(run):
    found = _decide(load=run, finetune=True)
    assert (found.iteration, found.is_resume, found.start_rollout_id) == (19, False, 0)


def test_a_release_gives_weights_only(tmp_path):
    torch_dist.save(tmp_path / "ref", "release", TENSORS)
    found = _decide(load=tmp_path / "ref")
    assert (found.kind, found.iteration) == ("torch_dist", "release")
    assert (found.is_resume, found.start_rollout_id) == (False, 0)


def test_a_hugging_face_folder_gives_weights_only(make_folder):
    folder = make_folder()
    found = _decide(load=folder)
    assert (found.kind, found.path, found.iteration) == ("hugging_face", folder, None)
    assert (found.is_resume, found.start_rollout_id) == (False, 0)
    with pytest.raises(CheckpointError, match="has no step 5"):
        _decide(load=folder, ckpt_step=5)


@pytest.mark.parametrize("is_there", [True, False])
def test_an_empty_or_absent_load_falls_back_loudly(tmp_path, make_folder, is_there):
    load = tmp_path / "new"
    if is_there:
        (load / ".iter_0000003.tmp-77").mkdir(parents=True)  # a save that died
        (load / ".gitignore").touch()
    found = _decide(load=load, ref_load=make_folder())
    assert (found.kind, found.is_fallback, found.start_rollout_id) == ("hugging_face", True, 0)
    assert "NEW run" in found.message
    assert str(load) in found.message
    assert "--ref-load" in found.message


def test_without_load_the_reference_is_taken_quietly(run, make_folder):
    found = _decide(ref_load=run, hf_checkpoint=make_folder())
    assert (found.kind, found.iteration, found.is_fallback) == ("torch_dist", 19, False)
    assert (found.is_resume, found.start_rollout_id) == (False, 0)
    assert _decide(ref_load=run, ref_ckpt_step=3).iteration == 3


def test_hf_checkpoint_is_the_last_choice(make_folder):
    found = _decide(hf_checkpoint=make_folder())
    assert (found.kind, found.path.name) == ("hugging_face", "model")
    assert "--hf-checkpoint" in found.message


def test_random_weights_are_taken_where_nothing_is_resumed(run, make_folder):
    assert _decide(hf_checkpoint=make_folder(), init="random").kind == "random"
    assert _decide(load=run, init="random").is_resume


def test_nothing_to_start_from_is_an_error():
    with pytest.raises(
        CheckpointError, match="set --ref-load or --hf-checkpoint, or --init random"
    ):
        _decide()


def test_a_mis_pointed_load_is_an_error_that_says_what_is_there(tmp_path, make_folder):
    (tmp_path / "wrong" / "run1").mkdir(parents=True)
    (tmp_path / "wrong" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"neither a checkpoint .* it holds notes\.txt, run1"):
        _decide(load=tmp_path / "wrong", save=str(tmp_path / "wrong"), ref_load=make_folder())
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        _decide(load=tmp_path / "file", ref_load=make_folder("other"))


def test_a_mis_pointed_ref_load_is_an_error(tmp_path, make_folder):
    with pytest.raises(CheckpointError, match=r"--ref-load .* is not a folder"):
        _decide(ref_load=tmp_path / "none", hf_checkpoint=make_folder())
    (tmp_path / "wrong").mkdir()
    with pytest.raises(CheckpointError, match=r"--ref-load .* holds nothing"):
        _decide(ref_load=tmp_path / "wrong")


def test_a_run_that_died_before_its_first_save_starts_anew(tmp_path, make_folder):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"observe": {}}')
    (folder / "metrics.jsonl").touch()
    found = _decide(load=folder, save=str(folder), ref_load=make_folder())
    assert (found.is_fallback, found.start_rollout_id) == (True, 0)
    # where this run will not write, the same folder is a mistake
    with pytest.raises(CheckpointError, match="neither"):
        _decide(load=folder, save=str(tmp_path / "other"), ref_load=make_folder("again"))


def test_a_record_beside_iterations_hides_none_of_them(run):
    (run / "metrics.jsonl").touch()
    assert _decide(load=run, save=str(run)).start_rollout_id == 20


def test_iterations_without_tracker_are_an_error(run):
    (run / torch_dist.TRACKER).unlink()
    with pytest.raises(CheckpointError, match=r"iterations but no latest.*\(3, 19\)"):
        _decide(load=run, save=str(run))
    assert _decide(load=run, ckpt_step=3).iteration == 3


def test_a_tracker_that_points_at_nothing_whole_names_what_is(run):
    (run / torch_dist.TRACKER).write_text("25")
    with pytest.raises(CheckpointError, match=r"iter_0000025 is not there; complete in .*: 3, 19 "):
        _decide(load=run)
    (run / "iter_0000025").mkdir()
    with pytest.raises(CheckpointError, match="iter_0000025 is not complete"):
        _decide(load=run)


def test_a_step_without_a_load_is_an_error(tmp_path, make_folder):
    with pytest.raises(CheckpointError, match="--ckpt-step 4 wants a --load"):
        _decide(ckpt_step=4, ref_load=make_folder())


def test_the_reference_follows_its_own_flags(run, make_folder):
    folder = str(make_folder())
    assert decide_reference(ref_load=None, hf_checkpoint=folder).kind == "hugging_face"
    found = decide_reference(ref_load=str(run), hf_checkpoint=folder, ref_ckpt_step=3)
    assert (found.kind, found.iteration) == ("torch_dist", 3)
