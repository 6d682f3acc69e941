"""A decoder in parts, on several ranks, says and learns what the whole one does."""

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
import torch.distributed as dist

from tandem.config import ParallelConfig
from tandem.kernels.attention import packed_attention
from tandem.kernels.head import head_logits, token_logprobs
from tandem.models.decoder import Decoder, Recompute
from tandem.models.part import WHOLE, Part, gather_whole, parts_of
from tandem.models.shape import Shape
from tandem.parallel import Sizes, make_mesh
from tandem.parallel.collectives import sum_

SHAPE = Shape(
    family="qwen3",
    num_layers=4,
    width=40,
    ffn=48,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=61,  # odd: tensor ranks have shards of different sizes
    eps=1e-6,
    rope_theta=10000.0,
    tied=False,
    qkv_bias=False,
    qk_norm=True,
    max_positions=64,
)
TIED = replace(SHAPE, tied=True)
QWEN2 = replace(SHAPE, qkv_bias=True, qk_norm=False)
BOUNDS_S = torch.tensor([0, 7, 16], dtype=torch.int32)
T = 16
GIVEN = ["cpu"]
"""The device of this process; a rank on GPUs puts its own there."""


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    sizes: Sizes
    flags: dict = field(default_factory=dict)
    recompute: Recompute | None = None


SP = {"sequence_parallel": True}
CASES = {
    case.name: case
    for case in (
        Case("tp2", SHAPE, Sizes(tensor=2)),
        Case("tp2-tied", TIED, Sizes(tensor=2)),
        Case("tp2-bias", QWEN2, Sizes(tensor=2)),
        Case("tp2-sp", SHAPE, Sizes(tensor=2), SP),
        Case("tp2-sp-tied-full", TIED, Sizes(tensor=2), SP, Recompute(num_layers=3)),
        Case(
            "tp2-sp-bias-selective", QWEN2, Sizes(tensor=2), SP, Recompute(granularity="selective")
        ),
        Case("pp2", SHAPE, Sizes(pipeline=2)),
        Case("pp2-tied", TIED, Sizes(pipeline=2), {"decoder_first_pipeline_num_layers": 3}),
        Case("pp2-virtual", TIED, Sizes(pipeline=2), {"num_virtual_stages_per_pipeline_rank": 2}),
        Case("tp2-pp2", TIED, Sizes(tensor=2, pipeline=2)),
        Case("tp2-pp2-sp", SHAPE, Sizes(tensor=2, pipeline=2), SP, Recompute(method="block")),
    )
}


def _device() -> str:
    return GIVEN[0]


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = {
        "tokens": torch.randint(SHAPE.vocab, (T,), generator=generator),
        "targets": torch.randint(SHAPE.vocab, (T,), generator=generator),
        "weights": torch.randn(2, T, generator=generator),
    }
    return {name: tensor.to(_device()) for name, tensor in drawn.items()}


def _whole(shape: Shape) -> Decoder:
    """The decoder that parts are cut from, with norms and biases that matter."""
    decoder = Decoder(shape, torch.float32, "cpu")
    decoder.init_random(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return decoder


def _cut(whole: Decoder, part: Part) -> Decoder:
    decoder = Decoder(whole.shape, torch.float32, _device(), part)
    named = dict(whole.named_parameters())
    with torch.no_grad():
        for name, shard in decoder.shards().items():
            decoder.get_parameter(name).copy_(shard.of(named[name]))
    return decoder


def _attend(layer, q_TNH, k_TKH, v_TKH):
    return packed_attention(q_TNH, k_TKH, v_TKH, BOUNDS_S.to(_device()), 9)


def _forward(decoder: Decoder, recompute, stream_TD=None) -> torch.Tensor:
    positions_T = torch.cat([torch.arange(7), torch.arange(9)]).to(_device())
    return decoder(_inputs()["tokens"], positions_T, _attend, recompute, stream_TD)


def _scores(decoder: Decoder, hidden_TD: torch.Tensor):
    return token_logprobs(
        hidden_TD,
        decoder.head_weight,
        _inputs()["targets"],
        temperature=0.8,
        chunk=5,
        entropy_needs_grad=True,
        axis=decoder.part.mesh.tensor,
        vocab_start=decoder.vocab_start,
    )


def _loss(logprobs_T, entropy_T) -> torch.Tensor:
    weights = _inputs()["weights"]
    return (weights[0] * logprobs_T).sum() + (weights[1] * entropy_T).sum()


def _run_stages(stages: list[Decoder], case: Case, mesh) -> dict:
    """Forward and backward through all stages, of which this process has some, by hand."""
    count = mesh.sizes.pipeline
    total = len(stages) * count
    ranks, group = mesh.pipeline.ranks, mesh.pipeline.group
    rows = T // 2 if stages[0].part.splits_rows else T
    found, taken, given = {}, {}, {}
    for i in range(total):
        if i % count == mesh.pipeline.rank:
            stream_TD = None
            if i:
                stream_TD = taken[i] = torch.empty(rows, SHAPE.width, device=_device())
                dist.recv(stream_TD, ranks[(i - 1) % count], group)
                stream_TD.requires_grad_()
            given[i] = _forward(stages[i // count], case.recompute, stream_TD)
            if i < total - 1:
                assert given[i].dtype == torch.float32
                dist.send(given[i].detach(), ranks[(i + 1) % count], group)
    for i in reversed(range(total)):
        if i % count == mesh.pipeline.rank:
            if i == total - 1:
                logprobs_T, entropy_T = _scores(stages[-1], given[i])
                _loss(logprobs_T, entropy_T).backward()
                found |= {"hidden": given[i], "logprobs": logprobs_T, "entropy": entropy_T}
            else:
                grad = torch.empty_like(given[i])
                dist.recv(grad, ranks[(i + 1) % count], group)
                given[i].backward(grad)
            if i:
                dist.send(taken[i].grad, ranks[(i - 1) % count], group)
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


def _gradients(stages: list[Decoder], mesh) -> dict[str, torch.Tensor]:
    """The whole gradients of the parameters here, summed over the axes that share them."""
    found = {}
    for stage in stages:
        axes, shards = stage.gradient_axes(), stage.shards()
        for name, parameter in stage.named_parameters():
            grad = parameter.grad
            for axis_name in axes[name]:
                sum_(grad, getattr(mesh, axis_name))
            found[name] = gather_whole(grad, shards[name], mesh).cpu()
    return found


def _on_case(case: Case, rank: int, new_group=dist.new_group) -> dict:
    mesh = make_mesh(rank, case.sizes, new_group)
    whole = _whole(case.shape)
    parts = parts_of(case.shape, mesh, ParallelConfig(**case.flags))
    stages = [_cut(whole, part) for part in parts]
    found = _run_stages(stages, case, mesh)
    return found | {"gradients": _gradients(stages, mesh)}


def _kept_shapes(mesh) -> set[tuple[int, ...]]:
    """Sizes of what a forward pass with sequence parallelism keeps for the backward pass."""
    shapes = set()
    decoder = _cut(_whole(SHAPE), Part(mesh=mesh, sequence_parallel=True))
    weights = {parameter.data_ptr() for parameter in decoder.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _forward(decoder, None)
    return shapes


def two(rank: int, world: int) -> dict:
    found = {c.name: _on_case(c, rank) for c in CASES.values() if c.sizes.world == 2}
    mesh = make_mesh(rank, Sizes(tensor=2), dist.new_group)
    found["kept"] = _kept_shapes(mesh)
    return found | {"heads": _heads(_cut(_whole(SHAPE), Part(mesh=mesh)))}


def two_gpus(rank: int, world: int) -> dict:
    torch.cuda.set_device(rank)
    GIVEN[0] = f"cuda:{rank}"
    new_group = partial(dist.new_group, backend="nccl")
    return {c.name: _on_case(c, rank, new_group) for c in CASES.values() if c.sizes.world == 2}


def four(rank: int, world: int) -> dict:
    return {c.name: _on_case(c, rank) for c in CASES.values() if c.sizes.world == 4}


def _hidden() -> torch.Tensor:
    return torch.randn(T, SHAPE.width, generator=torch.Generator().manual_seed(4))


def _top_mask() -> tuple[torch.Tensor, torch.Tensor]:
    # rows that name tokens of one rank only, of both, and none
    ids = [[3, 7], [59], [], [1, 60, 30, 31]] * (T // 4)
    counts = torch.tensor([0, *map(len, ids)])
    return torch.tensor([one for row in ids for one in row]), counts.cumsum(0)


def _heads(decoder: Decoder) -> dict:
    """What else is made of hidden states: logits, and log-probs in every other way."""
    found: dict = {}
    hidden_TD = _hidden().requires_grad_()
    logits = decoder.logits(hidden_TD)
    logits.square().sum().backward()
    shard, mesh = decoder.shards()["head.weight"], decoder.part.mesh
    weight_VD = decoder.head_weight
    found["logits"] = [logits.detach(), hidden_TD.grad]
    found["logits"].append(gather_whole(weight_VD.grad, shard, mesh))
    with torch.no_grad():
        found["head_logits"] = [decoder.head_logits(_hidden())]
    for name, how in _WAYS.items():
        hidden_TD, weight_VD.grad = _hidden().requires_grad_(), None
        logprobs_T, entropy_T = token_logprobs(
            hidden_TD, weight_VD, _inputs()["targets"], 0.8, 5, **how,
            axis=mesh.tensor, vocab_start=decoder.vocab_start,
        )  # fmt: skip
        loss = (_inputs()["weights"][0] * logprobs_T).sum()
        loss = loss if entropy_T is None else _loss(logprobs_T, entropy_T)
        loss.backward()
        found[name] = [logprobs_T.detach(), hidden_TD.grad]
        found[name].append(gather_whole(weight_VD.grad, shard, mesh))
        found[name] += [] if entropy_T is None else [entropy_T.detach()]
    empty = token_logprobs(
        _hidden()[:0].requires_grad_(), weight_VD, _inputs()["targets"][:0],
        axis=mesh.tensor, vocab_start=decoder.vocab_start,
    )[0]  # fmt: skip
    empty.sum().backward()
    return found


_WAYS: dict[str, dict] = {
    "alone": {},
    "kept": {"keep_bytes": 11 * 4 * 31, "want_entropy": True},
    "kept_entropy": {"keep_bytes": 1 << 20, "entropy_needs_grad": True},
    "masked": {"top_mask": _top_mask()},
    "masked_entropy": {"top_mask": _top_mask(), "entropy_needs_grad": True},
}


@pytest.fixture(scope="module")
def found(on_ranks) -> dict[int, list]:
    return {2: on_ranks(two, 2), 4: on_ranks(four, 4)}


def _is_close(found: torch.Tensor, wanted: torch.Tensor, bound: float = 1e-5) -> bool:
    return bool((found - wanted).norm() <= bound * wanted.norm())


def _check(case: Case, ranks: list[dict], bound: float) -> None:
    whole = _whole(case.shape)
    hidden_TD = _forward(whole, None)
    logprobs_T, entropy_T = _scores(whole, hidden_TD)
    _loss(logprobs_T, entropy_T).backward()
    wanted = {"hidden": hidden_TD, "logprobs": logprobs_T, "entropy": entropy_T}
    last = [one for one in ranks if "hidden" in one]
    assert len(last) == case.sizes.tensor
    for one in last:
        assert all(_is_close(one[key], tensor.detach(), bound) for key, tensor in wanted.items())
    seen = set()
    for one in ranks:
        for key, gradient in one["gradients"].items():
            assert _is_close(gradient, whole.get_parameter(key).grad, bound), key
            seen.add(key)
    assert seen == {key for key, _ in whole.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_parts_give_the_logprobs_entropies_and_gradients_of_the_whole(found, name):
    case = CASES[name]
    _check(case, [one[name] for one in found[case.sizes.world]], 1e-5)


@pytest.mark.gpu
def test_parts_on_two_gpus_give_what_the_whole_gives_on_the_cpu(on_ranks):
    if torch.cuda.device_count() < 2:
        pytest.skip("wants two CUDA devices")
    ranks = on_ranks(two_gpus, 2)
    for name in ranks[0]:
        _check(CASES[name], [one[name] for one in ranks], 1e-4)


def test_sequence_parallel_keeps_no_rows_but_its_own(found):
    for one in found[2]:
        assert (T // 2, SHAPE.width) in one["kept"]
        assert (T, SHAPE.width) not in one["kept"]


@pytest.mark.parametrize("name", ["logits", "head_logits", *_WAYS])
def test_a_head_in_parts_gives_what_the_whole_one_gives(found, name):
    # what alone computes as it always did is the measure
    wanted = _heads(_whole(SHAPE))[name]
    for one in found[2]:
        assert len(one["heads"][name]) == len(wanted)
        for here, there in zip(one["heads"][name], wanted, strict=True):
            assert _is_close(here, there)


def test_whole_logits_are_those_of_the_kernel():
    decoder = _whole(SHAPE)
    with torch.no_grad():
        wanted = head_logits(_hidden(), decoder.head_weight)
        assert decoder.head_logits(_hidden()).equal(wanted)


@pytest.mark.parametrize("name", CASES)
def test_random_weights_are_the_same_whatever_the_part(name):
    case = CASES[name]
    whole = Decoder(case.shape, torch.float32, "cpu")
    whole.init_random(5)
    seen = {}
    for rank in range(case.sizes.world):
        mesh = make_mesh(rank, case.sizes, tuple)
        for part in parts_of(case.shape, mesh, ParallelConfig(**case.flags)):
            decoder = Decoder(case.shape, torch.float32, "cpu", part)
            decoder.init_random(5)
            for key, shard in decoder.shards().items():
                parameter, wanted = decoder.get_parameter(key), whole.get_parameter(key)
                assert shard.global_shape == tuple(wanted.shape)
                assert parameter.equal(shard.of(wanted)), key
                seen[key] = seen.get(key, 0) + parameter.numel() / wanted.numel()
    # every number is somewhere, and nothing but what axes share is anywhere twice
    assert seen.keys() == dict(whole.named_parameters()).keys()
    assert all(count >= 1 - 1e-9 for count in seen.values())
    assert seen["layers.0.qkv.weight"] == 1


def test_selective_recompute_keeps_less_and_learns_the_same():
    def learn(recompute):
        decoder, sizes = _whole(SHAPE), []
        weights = {p.data_ptr() for p in decoder.parameters()}

        def pack(tensor):
            if tensor.data_ptr() not in weights:
                sizes.append((tensor.data_ptr(), tensor.nbytes))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden_TD = _forward(decoder, recompute)
        hidden_TD.square().sum().backward()
        return sum(dict(sizes).values()), [
            p.grad for p in decoder.parameters() if p.grad is not None
        ]

    everything, wanted = learn(None)
    less, found = learn(Recompute(granularity="selective"))
    assert everything - less == SHAPE.num_layers * T * SHAPE.ffn * 4
    assert all(one.equal(other) for one, other in zip(found, wanted, strict=True))


def test_a_whole_decoder_is_no_part():
    shards = Decoder(SHAPE, torch.float32, "meta", WHOLE).shards()
    assert all(not shard.cuts for shard in shards.values())
