import pytest
import torch

from tandem.kernels.attention import packed_attention
from tandem.models.build import build_decoder
from tandem.models.decoder import Decoder, Recompute
from tandem.models.shape import Shape

SHAPE = Shape(
    family="qwen3",
    num_layers=2,
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


def _hidden(decoder: Decoder) -> torch.Tensor:
    bounds_S = torch.tensor([0, 9], dtype=torch.int32)
    return decoder(
        torch.arange(9),
        torch.arange(9),
        lambda layer, q, k, v: packed_attention(q, k, v, bounds_S, 9),
    )


def test_a_seed_gives_the_same_bits_whatever_was_drawn_before():
    first = build_decoder(SHAPE, torch.float32, "cpu", seed=5)
    torch.manual_seed(99)
    second = build_decoder(SHAPE, torch.float32, "cpu", seed=5)
    third = build_decoder(SHAPE, torch.float32, "cpu", seed=6)
    for name, parameter in first.state_dict().items():
        assert parameter.equal(second.state_dict()[name]), name
        if parameter.dim() == 2:
            assert not parameter.equal(third.state_dict()[name]), name


def test_random_matrices_have_the_stated_deviation():
    decoder = build_decoder(SHAPE, torch.float32, "cpu", seed=5)
    drawn = torch.cat([p.detach().flatten() for p in decoder.parameters() if p.dim() == 2])
    assert drawn.mean().abs() < 1e-3
    assert abs(drawn.std() - 0.02) < 1e-3
    assert all(p.eq(1).all() for p in decoder.parameters() if p.dim() == 1)


def test_bfloat16_weights_are_the_float32_ones_rounded():
    full = build_decoder(SHAPE, torch.float32, "cpu", seed=5).state_dict()
    rounded = build_decoder(SHAPE, torch.bfloat16, "cpu", seed=5).state_dict()
    assert all(full[name].bfloat16().equal(rounded[name]) for name in full)


def test_a_deeper_model_shares_the_layers_of_a_shallow_one():
    from dataclasses import replace

    shallow = build_decoder(SHAPE, torch.float32, "cpu", seed=5).state_dict()
    deep = build_decoder(replace(SHAPE, num_layers=3), torch.float32, "cpu", seed=5).state_dict()
    assert all(deep[name].equal(shallow[name]) for name in shallow)


def test_parameters_have_the_names_that_the_checkpoint_knows():
    from tandem.checkpoint.names import our_shapes

    decoder = Decoder(SHAPE, torch.float32, "meta")
    assert {name: tuple(p.shape) for name, p in decoder.named_parameters()} == our_shapes(SHAPE)
    assert not list(decoder.buffers())


def test_a_cast_to_bfloat16_leaves_the_angles_in_float32():
    decoder = build_decoder(SHAPE, torch.float32, "cpu", seed=5)
    _hidden(decoder)
    cos, sin = decoder.to(torch.bfloat16).rope_table(torch.device("cpu"))
    assert cos.dtype == sin.dtype == torch.float32


def test_recompute_says_which_layers_forget():
    assert list(Recompute(num_layers=2).runs(5)) == [(0, 2, True), (2, 4, True), (4, 5, True)]
    assert list(Recompute(method="block", num_layers=2).runs(3)) == [
        (0, 1, True),
        (1, 2, True),
        (2, 3, False),
    ]


def test_build_from_a_checkpoint_wants_a_folder_and_a_reader():
    with pytest.raises(AssertionError, match="load"):
        build_decoder(SHAPE, torch.float32, "cpu", init="checkpoint")


@pytest.mark.gpu
def test_small_random_models_are_equal_on_cpu_and_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = build_decoder(SHAPE, torch.float32, "cpu", seed=5).state_dict()
    there = build_decoder(SHAPE, torch.float32, "cuda", seed=5).state_dict()
    assert all(there[name].cpu().equal(here[name]) for name in here)
