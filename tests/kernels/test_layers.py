import pytest
import torch

from tandem.errors import CheckpointError
from tandem.kernels.device import is_fused
from tandem.kernels.norm import add_rms_norm, rms_norm
from tandem.kernels.rope import qkv_rope, rope_table
from tandem.kernels.swiglu import swiglu

EPS = 1e-6


def _random(*shape, seed=0, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return x.to(torch.get_default_device(), dtype).requires_grad_()


def _plain_norm(x, weight, eps=EPS):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _assert_same_gradients(found, wanted, inputs, rtol=1e-4, atol=1e-5):
    grads = [torch.randn_like(y) for y in wanted]
    one = torch.autograd.grad(found, inputs, grads)
    two = torch.autograd.grad(wanted, inputs, grads)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_rms_norm_equals_its_formula_with_gradients():
    x, weight = _random(7, 33), _random(33, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, EPS), _plain_norm(x, weight))
    _assert_same_gradients([rms_norm(x, weight, EPS)], [_plain_norm(x, weight)], (x, weight))


def test_rms_norm_in_bf16_rounds_where_hugging_face_rounds():
    x, weight = _random(7, 64, dtype=torch.bfloat16), _random(64, seed=1, dtype=torch.bfloat16)
    y = rms_norm(x, weight, EPS)
    assert y.dtype == torch.bfloat16
    if is_fused(x):  # Triton's interpreter truncates where hardware rounds
        torch.testing.assert_close(y, _plain_norm(x, weight), rtol=2**-6, atol=0)
    else:
        assert torch.equal(y, _plain_norm(x, weight))


def test_rms_norm_of_a_row_does_not_depend_on_the_others():
    x, weight = _random(300, 96).detach(), _random(96, seed=1).detach()
    whole = rms_norm(x, weight, EPS)
    for rows in (slice(0, 1), slice(5, 7), slice(17, 280)):
        assert torch.equal(rms_norm(x[rows], weight, EPS), whole[rows])


def test_add_rms_norm_gives_the_norm_of_the_sum_and_the_sum():
    x, residual, weight = _random(5, 32), _random(5, 32, seed=1), _random(32, seed=2)
    found = add_rms_norm(x, residual, weight, EPS)
    wanted = (_plain_norm(x + residual, weight), x + residual)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    _assert_same_gradients(found, wanted, (x, residual, weight))


def test_swiglu_reads_even_columns_as_gate_and_odd_as_up():
    gate_up = _random(6, 26)
    wanted = torch.nn.functional.silu(gate_up[:, 0::2]) * gate_up[:, 1::2]
    torch.testing.assert_close(swiglu(gate_up), wanted)
    _assert_same_gradients([swiglu(gate_up)], [wanted], (gate_up,))


def _plain_qkv(qkv, positions, cos, sin, heads, key_heads, size, q_norm, k_norm):
    per_key = heads // key_heads
    grouped = qkv.view(len(qkv), key_heads, per_key + 2, size)
    q = grouped[:, :, :per_key].reshape(len(qkv), heads, size)
    k, v = grouped[:, :, -2], grouped[:, :, -1]
    if q_norm is not None:
        q, k = _plain_norm(q, q_norm), _plain_norm(k, k_norm)
    cos, sin = (torch.cat([x[positions]] * 2, dim=-1)[:, None] for x in (cos, sin))

    def turn(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    return turn(q), turn(k), v


@pytest.mark.parametrize("has_norm", [True, False])
def test_qkv_rope_equals_its_formula_with_gradients(has_norm):
    heads, key_heads, size = 6, 2, 8
    qkv = _random(11, key_heads * (heads // key_heads + 2) * size)
    norms = (_random(size, seed=1), _random(size, seed=2)) if has_norm else (None, None)
    positions = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 40, 41, 42])
    cos, sin = rope_table(size, 64, 10000.0)
    found = qkv_rope(qkv, positions, cos, sin, heads, key_heads, size, *norms, EPS)
    wanted = _plain_qkv(qkv, positions, cos, sin, heads, key_heads, size, *norms)
    for a, b in zip(found, wanted, strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, b)
    inputs = (qkv, *norms) if has_norm else (qkv,)
    _assert_same_gradients(found, wanted, inputs)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
)
def test_rope_table_equals_transformers(scaling):
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = Qwen3Config(
        head_dim=32,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", **(scaling or {}), "rope_theta": 10000.0},
    )
    if scaling and "type" in scaling:
        config.rope_parameters["rope_type"] = scaling["type"]
    wanted = Qwen3RotaryEmbedding(config)(torch.zeros(1), torch.arange(256)[None])
    for one, other in zip(rope_table(32, 256, 10000.0, scaling), wanted, strict=True):
        torch.testing.assert_close(one, other[0, :, :16], rtol=0, atol=2e-5)


def test_unknown_rope_scaling_is_an_error_that_names_the_known_ones():
    with pytest.raises(CheckpointError, match="llama3"):
        rope_table(32, 16, 10000.0, {"rope_type": "spiral"})


def test_rope_scaling_without_its_factor_is_an_error_that_names_it():
    with pytest.raises(CheckpointError, match="factor"):
        rope_table(32, 16, 10000.0, {"rope_type": "linear"})
