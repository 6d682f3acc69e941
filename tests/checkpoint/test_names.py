import pytest
import torch

from tandem.checkpoint.names import (
    differences,
    from_hugging_face,
    hugging_face_names,
    hugging_face_shapes,
    merge,
    our_name,
    our_shapes,
    split,
    to_hugging_face,
)
from tandem.errors import CheckpointError
from tandem.models.mixture import Mixture
from tandem.models.shape import Shape

MIXTURE = Mixture(
    num_experts=3,
    per_token=2,
    ffn=4,
    layers=(1,),
    normalises=True,
    shared_ffn=6,
    has_shared_gate=True,
)


def _shape(**changes) -> Shape:
    sizes = {
        "family": "qwen2",
        "num_layers": 2,
        "width": 12,
        "ffn": 10,
        "num_heads": 6,
        "num_key_heads": 2,
        "head_size": 4,
        "vocab": 17,
        "eps": 1e-6,
        "rope_theta": 1e4,
        "tied": False,
        "qkv_bias": True,
        "qk_norm": True,
        "max_positions": 8,
    }
    return Shape(**sizes | changes)


def _ours(shape: Shape) -> dict[str, torch.Tensor]:
    return {name: torch.randn(size) for name, size in our_shapes(shape).items()}


@pytest.mark.parametrize("mixture", [None, MIXTURE])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_there_and_back_changes_no_bit(tied, key_heads, mixture):
    shape = _shape(tied=tied, num_key_heads=key_heads, mixture=mixture)
    ours = _ours(shape)
    theirs = dict(to_hugging_face(shape, ours.items()))
    assert {name: tuple(t.shape) for name, t in theirs.items()} == hugging_face_shapes(shape)
    back = dict(from_hugging_face(shape, theirs.items()))
    assert back.keys() == ours.keys()
    assert all(back[name].equal(ours[name]) for name in ours)


def test_tensors_may_come_in_any_order():
    shape = _shape()
    ours = _ours(shape)
    theirs = sorted(to_hugging_face(shape, ours.items()), reverse=True)
    back = dict(from_hugging_face(shape, theirs))
    assert all(back[name].equal(ours[name]) for name in ours)


def test_a_shard_of_whole_key_heads_is_split_like_the_whole():
    shape = _shape()
    qkv = torch.randn(40, 12)  # two key heads of (3 + 2) x 4 rows
    whole = dict(split(shape, "layers.0.qkv.weight", qkv))
    shards = [dict(split(shape, "layers.0.qkv.weight", part)) for part in qkv.chunk(2)]
    for name in whole:
        assert torch.cat([shard[name] for shard in shards]).equal(whole[name])


def test_rows_of_one_key_head_lie_together():
    shape = _shape()
    parts = [torch.full((24, 1), 1.0), torch.full((8, 1), 2.0), torch.full((8, 1), 3.0)]
    merged = merge(shape, "layers.0.qkv.weight", parts).flatten().tolist()
    assert merged == ([1.0] * 12 + [2.0] * 4 + [3.0] * 4) * 2


def test_gate_and_up_alternate():
    merged = merge(_shape(), "layers.0.gate_up.weight", [torch.zeros(2, 1), torch.ones(2, 1)])
    assert merged.flatten().tolist() == [0, 1, 0, 1]


def test_each_expert_is_a_tensor_of_its_own():
    shape = _shape(mixture=MIXTURE)
    ours = _ours(shape)
    theirs = dict(to_hugging_face(shape, ours.items()))
    gate_up, down = (ours[f"layers.1.experts.{name}.weight"] for name in ("gate_up", "down"))
    expert = "model.layers.1.mlp.experts.2."
    assert theirs[expert + "gate_proj.weight"].equal(gate_up[2, 0::2])
    assert theirs[expert + "up_proj.weight"].equal(gate_up[2, 1::2])
    assert theirs[expert + "down_proj.weight"].equal(down[2])
    assert "model.layers.1.mlp.gate_proj.weight" not in theirs
    assert "model.layers.0.mlp.gate_proj.weight" in theirs


@pytest.mark.parametrize("mixture", [None, MIXTURE])
def test_names_of_both_worlds_match(mixture):
    shape = _shape(mixture=mixture)
    for ours in our_shapes(shape):
        assert {our_name(theirs) for theirs in hugging_face_names(shape, ours)} == {ours}


def test_split_tensors_can_be_sent_and_saved():
    shape = _shape()
    assert all(t.is_contiguous() for _, t in to_hugging_face(shape, _ours(shape).items()))


def test_unknown_double_and_lost_names_are_errors():
    shape = _shape()
    some = [("model.norm.weight", torch.ones(12))]
    with pytest.raises(CheckpointError, match=r"model\.rope"):
        list(from_hugging_face(shape, [("model.rope", torch.ones(1))]))
    with pytest.raises(CheckpointError, match=r"q_proj\.bias came twice"):
        query = ("model.layers.0.self_attn.q_proj.bias", torch.ones(24))
        list(from_hugging_face(shape, [query, query]))
    with pytest.raises(CheckpointError, match=r"1 tensors did not come: .*up_proj"):
        gate = ("model.layers.0.mlp.gate_proj.weight", torch.ones(10, 12))
        list(from_hugging_face(shape, [*some, gate]))


def test_differences_are_told_apart():
    lines = differences({"a": (1,), "c": (2,)}, {"a": (3,), "b": (1,)})
    assert [line.split(":")[0] for line in lines] == ["missing", "not known", "of another size"]
