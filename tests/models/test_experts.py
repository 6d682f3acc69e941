"""Experts alone and over processes: replayed, balanced, divided."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tandem.kernels.attention import packed_attention
from tandem.models.decoder import Decoder, Recompute
from tandem.models.experts import NO_ROUTING, Balance, Experts, Routing
from tandem.models.mixture import Mixture
from tandem.models.part import Part
from tandem.models.shape import Shape
from tandem.parallel import collectives, make_mesh, sizes_of

MIXTURE = Mixture(
    num_experts=8,
    per_token=2,
    ffn=12,
    layers=(0, 2),
    normalises=True,
    shared_ffn=10,
    has_shared_gate=True,
)
SHAPE = Shape(
    family="qwen3_moe",
    num_layers=3,
    width=16,
    ffn=24,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=32,
    eps=1e-6,
    rope_theta=10000.0,
    tied=False,
    qkv_bias=False,
    qk_norm=True,
    max_positions=64,
    mixture=MIXTURE,
)
LENGTHS = (14, 10)
LAYOUTS = {
    "data 2, expert 2": {"world": 2, "expert": 2},
    "tensor 2 with sequence, expert 2": {"world": 2, "tensor": 2, "expert": 2},
    "tensor 2 with sequence, expert tensor 2": {"world": 2, "tensor": 2, "expert_tensor": 2},
    "data 2, tensor 2, both": {"world": 4, "tensor": 2, "expert": 2, "expert_tensor": 2},
    "pipeline 2, expert 2": {"world": 4, "pipeline": 2, "expert": 2},
}


def _decoder(part: Part | None = None) -> Decoder:
    decoder = Decoder(SHAPE, torch.float32, "cpu", part or Part())
    decoder.init_random(3)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(20 if "router" in name else 8)  # far from a constant
    return decoder


def _hidden(decoder: Decoder, tokens_T: torch.Tensor, stream=None, **how) -> torch.Tensor:
    length = len(tokens_T)
    bounds_S = torch.tensor([0, length], dtype=torch.int32)

    def attend(layer, q_TNH, k_TKH, v_TKH):
        return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, length)

    return decoder(tokens_T, torch.arange(length), attend, stream_TD=stream, **how)


def _sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(SHAPE.vocab, (length,), generator=generator) for length in LENGTHS]


def _odd() -> torch.Tensor:
    """Tokens that two ranks cannot share evenly."""
    return _sequences()[0][:13]


def _loss(hidden_TD: torch.Tensor) -> torch.Tensor:
    weight_TD = torch.arange(hidden_TD.numel()).view_as(hidden_TD).remainder(7) - 3
    return (hidden_TD * weight_TD).sum()


def _gradients(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


# --- over processes


def divided(rank: int, world: int) -> dict:
    """By layout the hidden states and gradients of this rank, gradients summed as they should."""
    found = {}
    for name, sizes in LAYOUTS.items():
        if sizes["world"] == world:
            found[name] = _divided(rank, sizes)
    return found


def _divided(rank: int, sizes: dict) -> tuple:
    mesh = make_mesh(rank, sizes_of(**sizes), dist.new_group)
    first, last = mesh.pipeline.is_first, mesh.pipeline.is_last
    half = range(2) if first else range(2, SHAPE.num_layers)
    part = Part(
        mesh=mesh,
        layers=None if mesh.pipeline.size == 1 else half,
        is_first=first,
        is_last=last,
        sequence_parallel=True,
    )
    decoder = _decoder(part)
    sequences = _sequences()
    mine = sequences if mesh.data.size == 1 else sequences[mesh.data.rank :: mesh.data.size]
    hidden = []
    for tokens_T in mine:
        if mesh.pipeline.size == 1:
            hidden.append(_hidden(decoder, tokens_T))
            _loss(hidden[-1]).backward()
        else:
            hidden.append(_through_stages(decoder, tokens_T, mesh.pipeline))
    axes, shards = decoder.gradient_axes(), decoder.shards()
    gradients = _gradients(decoder)
    for parameter, gradient in gradients.items():
        for axis in axes[parameter]:
            collectives.sum_(gradient, getattr(mesh, axis))
    sampled = None
    if mesh.tensor.size == sizes["world"]:
        with torch.no_grad():
            sampled = _hidden(decoder.for_sampling(), _odd())
    return mesh.data.rank, [h.detach() for h in hidden], gradients, shards, sampled


def _through_stages(decoder: Decoder, tokens_T: torch.Tensor, axis) -> torch.Tensor:
    size = (len(tokens_T), SHAPE.width)
    if axis.is_first:
        stream_TD = _hidden(decoder, tokens_T)
        dist.send(stream_TD.detach(), axis.ranks[1])
        grad_TD = torch.empty(size)
        dist.recv(grad_TD, axis.ranks[1])
        stream_TD.backward(grad_TD)
        return stream_TD
    stream_TD = torch.empty(size)
    dist.recv(stream_TD, axis.ranks[0])
    hidden_TD = _hidden(decoder, tokens_T, stream_TD.requires_grad_())
    _loss(hidden_TD).backward()
    dist.send(stream_TD.grad, axis.ranks[0])
    return hidden_TD


@pytest.fixture(scope="module")
def whole() -> tuple:
    decoder = _decoder()
    hidden = [_hidden(decoder, tokens_T) for tokens_T in _sequences()]
    sum(map(_loss, hidden)).backward()
    return [h.detach() for h in hidden], _gradients(decoder)


@pytest.fixture(scope="module")
def parts(on_ranks) -> dict:
    by_layout: dict = {}
    for world in (2, 4):
        for found in on_ranks(divided, world):
            for name, result in found.items():
                by_layout.setdefault(name, []).append(result)
    return by_layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_divided_experts_equal_those_of_one_process(parts, whole, layout):
    hidden, gradients = whole
    seen = set()
    for data_rank, found, mine, shards, _ in parts[layout]:
        wanted = hidden if len(found) == len(hidden) else hidden[data_rank::2]
        if "norm.weight" in shards:
            for one, two in zip(found, wanted, strict=True):
                assert (one - two).abs().max() < 1e-5 * two.abs().max()
        for name, gradient in mine.items():
            whole_gradient = gradients[name]
            scale = whole_gradient.abs().max()
            difference = (gradient - shards[name].of(whole_gradient)).abs().max()
            assert difference <= 1e-5 * scale, name
            seen.add(name)
    assert seen == set(gradients)


def test_tensor_ranks_sample_rows_that_all_have(parts):
    with torch.no_grad():
        wanted = _hidden(_decoder(), _odd())
    found = [sampled for ranks in parts.values() for *_, sampled in ranks if sampled is not None]
    assert len(found) == 4
    for hidden_TD in found:
        assert (hidden_TD - wanted).abs().max() < 1e-5 * wanted.abs().max()


# --- replay


def _recorded(num_tokens: int) -> torch.Tensor:
    return torch.full((num_tokens, len(MIXTURE.layers), MIXTURE.per_token), -1, dtype=torch.int16)


def test_what_was_recorded_replays_to_the_same_bits():
    decoder, tokens_T = _decoder(), _sequences()[0]
    recorded_TLk = _recorded(len(tokens_T))
    plain = _hidden(decoder, tokens_T, routing=Routing(recorded_TLk=recorded_TLk))
    assert plain.equal(_hidden(decoder, tokens_T))
    assert recorded_TLk.min() >= 0 and recorded_TLk.max() < MIXTURE.num_experts
    assert recorded_TLk.unique(dim=0).shape[0] > 2
    assert plain.equal(_hidden(decoder, tokens_T, routing=Routing(replayed_TLk=recorded_TLk)))


def test_replayed_experts_are_those_that_compute_and_learn():
    decoder, tokens_T = _decoder(), _sequences()[0]
    replayed_TLk = torch.zeros_like(_recorded(len(tokens_T)))
    replayed_TLk[..., 1] = 5
    recorded_TLk = _recorded(len(tokens_T))
    for recompute in (None, Recompute()):
        decoder.zero_grad()
        routing = Routing(replayed_TLk=replayed_TLk, recorded_TLk=recorded_TLk)
        _loss(_hidden(decoder, tokens_T, recompute=recompute, routing=routing)).backward()
        assert recorded_TLk.equal(replayed_TLk)
        used_E = decoder.layers[2].experts.down.weight.grad.flatten(1).any(1)
        assert used_E.nonzero().flatten().tolist() == [0, 5]
        assert decoder.layers[2].experts.router.weight.grad.any()


def test_a_router_chooses_where_nothing_is_replayed():
    decoder, tokens_T = _decoder(), _sequences()[0]
    own_TLk, replayed_TLk, taken_TLk = (_recorded(len(tokens_T)) for _ in range(3))
    _hidden(decoder, tokens_T, routing=Routing(recorded_TLk=own_TLk))
    replayed_TLk[:4] = own_TLk[:4].flip(0)
    _hidden(decoder, tokens_T, routing=Routing(replayed_TLk, taken_TLk))
    assert taken_TLk[:4].equal(replayed_TLk[:4])
    # the first layer with experts sees the same as before
    assert taken_TLk[4:, 0].equal(own_TLk[4:, 0])


# --- balance


def _balanced(coef: float, real: int, num_tokens: int) -> Balance:
    return Balance(coef, torch.tensor(1.0), torch.arange(num_tokens) < real, [])


def test_the_balance_loss_is_that_of_the_switch_transformer():
    torch.manual_seed(0)
    experts = Experts(SHAPE, 0, torch.float32).to_empty(device="cpu")
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    y_TD = torch.randn(9, SHAPE.width)
    balance = _balanced(0.5, 7, 9)
    experts(y_TD, replace(NO_ROUTING, balance=balance)).mul(0).sum().backward()
    found = experts.router.weight.grad.clone()

    experts.zero_grad()
    probs_TE = (y_TD[:7] @ experts.router.weight.T).softmax(-1)
    chosen_TE = torch.zeros(7, 8).scatter_(1, probs_TE.topk(2).indices, 1.0)
    loss = 8 * (chosen_TE.sum(0) / 14 * probs_TE.mean(0)).sum()
    (0.5 * loss).backward()
    assert (found - experts.router.weight.grad).abs().max() < 1e-6
    assert len(balance.losses) == 1 and abs(balance.losses[0] - loss) < 1e-6


def test_even_experts_have_a_balance_loss_of_one():
    experts = Experts(SHAPE, 0, torch.float32).to_empty(device="cpu")
    torch.nn.init.zeros_(experts.router.weight)  # all experts are equally likely
    balance = _balanced(1.0, 4, 4)
    experts(torch.randn(4, SHAPE.width), replace(NO_ROUTING, balance=balance)).sum().backward()
    assert abs(balance.losses[0] - 1) < 1e-6


@pytest.mark.parametrize("recompute", [None, Recompute(), Recompute(granularity="selective")])
def test_balance_counts_each_layer_once_and_changes_no_other_gradient(recompute):
    decoder, tokens_T = _decoder(), _sequences()[0]
    _loss(_hidden(decoder, tokens_T, recompute=recompute)).backward()
    plain = _gradients(decoder)
    decoder.zero_grad()
    balance = _balanced(0.0, len(tokens_T), len(tokens_T))
    routing = replace(NO_ROUTING, balance=balance)
    _loss(_hidden(decoder, tokens_T, recompute=recompute, routing=routing)).backward()
    assert len(balance.losses) == len(MIXTURE.layers)
    assert all(loss > 1 for loss in balance.losses)
    for name, gradient in _gradients(decoder).items():
        assert gradient.equal(plain[name]), name
