"""Checkpoints of Megatron-Core, written and read by Megatron-Core itself on the other side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tandem.checkpoint import torch_dist
from tandem.checkpoint.convert import hf_to_megatron, torch_dist_to_hf
from tandem.checkpoint.find import decide_load
from tandem.checkpoint.hugging_face import read_hugging_face
from tandem.checkpoint.names import our_shapes
from tandem.errors import CheckpointError
from tandem.models.shape import Shape, shape_of

SCRIPT = Path(__file__).with_name("with_megatron.py")


def _megatron(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _config(*, is_tied: bool, vocab: int = 64) -> dict:
    return {
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "rope_theta": 1e6,
        "tie_word_embeddings": is_tied,
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The root of a checkpoint with an untied release by Megatron-Core, its parameters beside."""
    root = tmp_path_factory.mktemp("megatron")
    _megatron("save", str(root / "release"), "untied")
    (root / torch_dist.TRACKER).write_text("release")
    return root


def _loaded(root: Path, shape: Shape) -> dict[str, torch.Tensor]:
    named = {
        torch_dist.MODEL + name: torch.zeros(size, dtype=torch.bfloat16)
        for name, size in our_shapes(shape).items()
    }
    assert torch_dist.load(root, named, prefix=torch_dist.MODEL) == {}
    return {name.removeprefix(torch_dist.MODEL): tensor for name, tensor in named.items()}


def test_every_weight_of_megatron_is_where_our_decoder_has_it(saved):
    theirs = torch.load(f"{saved / 'release'}.pt")
    ours = _loaded(saved, shape_of(_config(is_tied=False)))
    layer = "decoder.layers.1."
    wanted = {
        "embed.weight": "embedding.word_embeddings.weight",
        "head.weight": "output_layer.weight",
        "norm.weight": "decoder.final_layernorm.weight",
        "layers.1.norm1.weight": layer + "input_layernorm.weight",
        "layers.1.qkv.weight": layer + "self_attention.linear_qkv.weight",
        "layers.1.q_norm.weight": layer + "self_attention.q_layernorm.weight",
        "layers.1.out.weight": layer + "self_attention.linear_proj.weight",
        "layers.1.norm2.weight": layer + "pre_mlp_layernorm.weight",
        "layers.1.down.weight": layer + "mlp.linear_fc2.weight",
    }
    for own, name in wanted.items():
        assert ours[own].equal(theirs[name].bfloat16()), own
    gate, up = theirs[layer + "mlp.linear_fc1.weight"].chunk(2)
    assert ours["layers.1.gate_up.weight"][0::2].equal(gate)
    assert ours["layers.1.gate_up.weight"][1::2].equal(up)
    assert len(ours) == len(theirs)


def test_padding_of_the_vocabulary_is_cut_off(saved):
    whole = _loaded(saved, shape_of(_config(is_tied=False)))
    cut = _loaded(saved, shape_of(_config(is_tied=False, vocab=60)))
    assert cut["embed.weight"].equal(whole["embed.weight"][:60])
    assert cut["head.weight"].equal(whole["head.weight"][:60])


def test_another_model_is_refused_with_every_difference(saved):
    config = _config(is_tied=False) | {"num_hidden_layers": 3, "intermediate_size": 64}
    with pytest.raises(CheckpointError) as caught:
        _loaded(saved, shape_of(config))
    assert "layers.0.gate_up.weight is (96, 32), wanted (128, 32)" in str(caught.value)
    assert "missing: layers.2.qkv.weight" in str(caught.value)


def _origin(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_config(is_tied=False)))
    return folder


def test_to_hugging_face_and_back_to_megatron_changes_no_bit(saved, tmp_path):
    origin = _origin(tmp_path / "origin")
    folder = torch_dist_to_hf(saved, tmp_path / "hf", origin)
    shape = shape_of(_config(is_tied=False))
    ours = _loaded(saved, shape)
    read = dict(read_hugging_face(shape, folder))
    assert {
        name: tensor.bfloat16().equal(ours[name]) for name, tensor in read.items()
    } == dict.fromkeys(ours, True)
    back = hf_to_megatron(folder, tmp_path / "back")
    _megatron("load", str(back), "untied", f"{saved / 'release'}.pt")


def test_a_run_of_megatron_gives_weights_and_cannot_be_resumed(saved, tmp_path):
    found = decide_load(load=None, ref_load=str(saved), hf_checkpoint=None)
    assert (found.kind, found.iteration, found.is_resume) == ("torch_dist", "release", False)
    root = tmp_path / "run"
    root.mkdir()
    (root / "iter_0000007").symlink_to(saved / "release")
    (root / torch_dist.TRACKER).write_text("7")
    with pytest.raises(CheckpointError, match=r"written by Megatron.*--finetune"):
        decide_load(load=str(root), ref_load=None, hf_checkpoint=None)
    found = decide_load(load=str(root), ref_load=None, hf_checkpoint=None, finetune=True)
    assert (found.iteration, found.is_resume) == (7, False)
    with pytest.raises(CheckpointError, match="only its model's weights"):
        torch_dist.load(root, {"optimizer.step": torch.zeros(())})
