"""Our decoder against transformers, in float32."""

import pytest
import torch

from tandem.checkpoint.hugging_face import load_hugging_face
from tandem.checkpoint.names import to_hugging_face
from tandem.kernels.attention import packed_attention
from tandem.models.build import build_decoder
from tandem.models.decoder import Recompute

FAMILIES = ("qwen3", "qwen2", "llama", "qwen3_moe", "qwen2_moe")
LENGTHS = (7, 1, 40, 12)


def _rows(vocab: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocab, (length,), generator=generator) for length in LENGTHS]


def _packed(decoder, rows, recompute=None):
    bounds_S = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0)]).int()
    positions_T = torch.cat([torch.arange(len(row)) for row in rows])

    def attend(layer, q_TNH, k_TKH, v_TKH):
        return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, max(len(row) for row in rows))

    hidden_TD = decoder(torch.cat(rows), positions_T, attend, recompute)
    return decoder.logits(hidden_TD)


def _pair(saved_model, family, **changes):
    model, folder = saved_model(family, **changes)
    decoder = build_decoder(folder, torch.float32, "cpu", init="checkpoint", load=load_hugging_face)
    return model, decoder


def _by_expert(named):
    """What transformers runs as one tensor, as the tensors that it saves."""
    for name, tensor in named:
        if name.endswith("experts.gate_up_proj"):
            for expert, whole in enumerate(tensor):
                for kind, part in zip(("gate_proj", "up_proj"), whole.chunk(2), strict=True):
                    yield name.replace("gate_up_proj", f"{expert}.{kind}.weight"), part
        elif name.endswith("experts.down_proj"):
            for expert, part in enumerate(tensor):
                yield name.replace("down_proj", f"{expert}.down_proj.weight"), part
        else:
            yield name, tensor


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_equal_those_of_each_sequence_alone(saved_model, family, tied):
    model, decoder = _pair(saved_model, family, tie_word_embeddings=tied)
    rows = _rows(decoder.shape.vocab)
    with torch.no_grad():
        ours = _packed(decoder, rows).split(LENGTHS)
        theirs = [model(row[None]).logits[0] for row in rows]
    for our_TV, their_TV in zip(ours, theirs, strict=True):
        assert their_TV.abs().max() > 1  # far from a constant output
        assert (our_TV - their_TV).abs().max() < 1e-4


@pytest.mark.parametrize("key_heads", [1, 6])
def test_one_and_all_key_heads_give_the_same_logits(saved_model, key_heads):
    model, decoder = _pair(saved_model, "qwen3", num_key_value_heads=key_heads)
    rows = _rows(decoder.shape.vocab)[-1:]
    with torch.no_grad():
        assert (_packed(decoder, rows) - model(rows[0][None]).logits[0]).abs().max() < 1e-4


def test_linear_rope_scaling_is_honoured(saved_model):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    model, decoder = _pair(saved_model, "llama", rope_parameters=rope)
    rows = _rows(decoder.shape.vocab)[-1:]
    with torch.no_grad():
        assert (_packed(decoder, rows) - model(rows[0][None]).logits[0]).abs().max() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_transformers(saved_model, family, tied):
    model, decoder = _pair(saved_model, family, tie_word_embeddings=tied)
    rows = _rows(decoder.shape.vocab)
    weight_TV = torch.randn(sum(LENGTHS), decoder.shape.vocab) / 100
    (_packed(decoder, rows) * weight_TV).sum().backward()
    theirs_TV = torch.cat([model(row[None]).logits[0] for row in rows])
    (theirs_TV * weight_TV).sum().backward()

    named = [(name, parameter.grad) for name, parameter in decoder.named_parameters()]
    ours = dict(to_hugging_face(decoder.shape, named))
    theirs = dict(_by_expert((name, p.grad) for name, p in model.named_parameters()))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = gradient.abs().max()
        assert scale > 0 or ".experts." in name, name  # some expert may have no token
        assert (ours[name] - gradient).abs().max() < 1e-4 * max(1, scale), name


@pytest.mark.parametrize(
    "recompute",
    [
        Recompute(),
        Recompute(num_layers=2),
        Recompute(method="block", num_layers=2),
        Recompute(method="block", num_layers=9),
    ],
)
def test_recompute_changes_no_gradient(saved_model, recompute):
    _, decoder = _pair(saved_model, "qwen3")
    rows = _rows(decoder.shape.vocab)
    plain = _packed(decoder, rows)
    plain.square().sum().backward()
    wanted = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    decoder.zero_grad(set_to_none=True)
    again = _packed(decoder, rows, recompute)
    again.square().sum().backward()
    assert again.equal(plain)
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.equal(wanted[name]), name


def test_recompute_keeps_less_for_the_backward_pass(saved_model):
    _, decoder = _pair(saved_model, "qwen3")
    rows = _rows(decoder.shape.vocab)

    def kept(recompute) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            _packed(decoder, rows, recompute)
        return sum(sizes)

    assert kept(Recompute()) < kept(Recompute(method="block", num_layers=1)) < kept(None)


def test_bfloat16_model_stays_near_its_float32_self(saved_model):
    model, folder = saved_model("qwen3")
    decoder = build_decoder(folder, torch.bfloat16, "cpu", "checkpoint", load=load_hugging_face)
    rows = _rows(decoder.shape.vocab)[-1:]
    with torch.no_grad():
        ours_TV, theirs_TV = _packed(decoder, rows), model(rows[0][None]).logits[0]
    assert ours_TV.dtype == torch.bfloat16
    assert (ours_TV.float() - theirs_TV).norm() < 0.05 * theirs_TV.norm()


def test_a_model_first_used_in_inference_mode_can_be_trained(saved_model):
    _, decoder = _pair(saved_model, "llama")
    rows = _rows(decoder.shape.vocab)
    with torch.inference_mode():
        _packed(decoder, rows)
    _packed(decoder, rows).sum().backward()
    assert decoder.layers[0].qkv.weight.grad.abs().max() > 0
