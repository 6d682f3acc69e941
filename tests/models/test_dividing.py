"""Stages and shards of a model, and what cannot be divided."""

from dataclasses import replace

import pytest

from tandem.config import ParallelConfig
from tandem.errors import ConfigError
from tandem.models.mixture import Mixture
from tandem.models.part import check_parts, parts_of, refusals
from tandem.models.shape import Shape
from tandem.parallel import Sizes, make_mesh

SHAPE = Shape(
    family="qwen3",
    num_layers=4,
    width=32,
    ffn=48,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=61,
    eps=1e-6,
    rope_theta=10000.0,
    tied=False,
    qkv_bias=False,
    qk_norm=True,
    max_positions=64,
)


def test_virtual_stages_alternate_between_the_ranks():
    cfg = ParallelConfig(num_virtual_stages_per_pipeline_rank=2)
    sizes = Sizes(pipeline=2)
    parts = [parts_of(SHAPE, make_mesh(rank, sizes, tuple), cfg) for rank in range(2)]
    assert [[part.layers for part in one] for one in parts] == [
        [range(1), range(2, 3)],
        [range(1, 2), range(3, 4)],
    ]
    assert [[(p.is_first, p.is_last) for p in one] for one in parts] == [
        [(True, False), (False, False)],
        [(False, False), (False, True)],
    ]


def test_first_and_last_stage_may_have_fewer_layers():
    cfg = ParallelConfig(decoder_first_pipeline_num_layers=1, decoder_last_pipeline_num_layers=1)
    shape, sizes = replace(SHAPE, num_layers=8), Sizes(pipeline=4)
    parts = [parts_of(shape, make_mesh(rank, sizes, tuple), cfg) for rank in range(4)]
    assert [len(one[0].layers) for one in parts] == [1, 3, 3, 1]


@pytest.mark.parametrize(
    ("sizes", "flags", "said"),
    [
        (Sizes(tensor=3), {}, "does not divide the model's 4 attention heads"),
        (Sizes(tensor=4), {}, "does not divide the model's 2 key heads"),
        (Sizes(tensor=62), {}, "without any of the 61 tokens"),
        (Sizes(pipeline=3), {}, "leaves 4 layers to 3 stages"),
        (Sizes(pipeline=2), {"num_layers_per_virtual_pipeline_stage": 3}, "a divisor of 2"),
        (Sizes(pipeline=2), {"decoder_first_pipeline_num_layers": 4}, "do not make 2 stages"),
        (
            Sizes(pipeline=2),
            {"decoder_first_pipeline_num_layers": 2, "decoder_last_pipeline_num_layers": 1},
            "do not make 2 stages",
        ),
    ],
)
def test_a_model_that_cannot_be_divided_so_is_refused_with_what_to_set(sizes, flags, said):
    cfg = ParallelConfig(**flags)
    assert any(said in line for line in refusals(SHAPE, sizes, cfg))
    with pytest.raises(ConfigError, match=said):
        parts_of(SHAPE, make_mesh(0, sizes, tuple), cfg)


def test_experts_must_divide_and_want_sequence_parallel_beside_tensor_parallel():
    mixture = Mixture(num_experts=6, per_token=2, ffn=9, layers=(0, 1, 2, 3), normalises=True)
    shape = replace(SHAPE, mixture=mixture)
    sizes = Sizes(tensor=2, data=2, expert=4, expert_tensor=2)
    said = " ".join(refusals(shape, sizes, ParallelConfig()))
    assert "does not divide the model's 6 experts" in said
    assert "does not divide the model's 9 columns of an expert" in said
    assert "needs --sequence-parallel" in said
    assert "this model has no experts" in " ".join(refusals(SHAPE, sizes, ParallelConfig()))


def test_everything_in_the_way_is_said_at_once():
    cfg = ParallelConfig(tensor_model_parallel_size=3, pipeline_model_parallel_size=3)
    with pytest.raises(ConfigError) as caught:
        check_parts(SHAPE, 9, cfg)
    assert len(caught.value.failures) == 3
    check_parts(SHAPE, 4, ParallelConfig(tensor_model_parallel_size=2))
