"""Two ranks that share an engine's matrices sample the tokens of one process."""

import asyncio

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tandem.checkpoint.names import to_hugging_face
from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.engine.torch.lockstep import follow, open_wire
from tandem.errors import SyncError
from tandem.models.decoder import Decoder
from tandem.models.part import WHOLE, Part
from tandem.models.shape import Shape
from tandem.parallel import Sizes, make_mesh
from tandem.types import Completion, Request, SampleKey, Sampling, Weights

SHAPE = Shape(
    family="qwen3",
    num_layers=2,
    width=32,
    ffn=64,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=61,  # odd: the ranks have shards of different sizes
    eps=1e-6,
    rope_theta=10000.0,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=128,
    eos_token_ids=(60,),
)
SETTINGS = {
    "engine_block_size": 8,
    "engine_cache_tokens": 88,  # little: sequences are preempted
    "engine_max_running": 6,
    "engine_prefill_tokens": 32,
}
CANARY = np.arange(11, dtype=np.int32)


def _decoder(seed: int, part: Part) -> Decoder:
    decoder = Decoder(SHAPE, torch.float32, "cpu", part)
    decoder.init_random(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() >= 2:
                parameter *= 12  # the usual random weights make all tokens equally likely
    return decoder


def _engine(part: Part, wire=None) -> TorchEngine:
    cfg = EngineConfig(**SETTINGS)
    return TorchEngine(_decoder(0, part), None, cfg, "cpu", (60,), wire=wire)


def _requests(first: int = 0) -> list[Request]:
    asked = []
    for prompt in range(first, first + 3):
        rng = np.random.default_rng(prompt)
        tokens_T = rng.integers(0, 60, size=int(rng.integers(9, 30))).astype(np.int32)
        for sample in range(4):
            how = {"top_p": 0.9} if sample == 1 else {"temperature": 0.0} if sample == 2 else {}
            asked.append(
                Request(
                    id=f"{prompt}-{sample}",
                    tokens_T=tokens_T,
                    sampling=Sampling(max_new_tokens=8 + 6 * sample, **how),
                    key=SampleKey(seed=3, prompt=prompt, sample=sample),
                    group=f"{prompt}",
                )
            )
    return asked


def _new_weights(lacks: str | None = None) -> Weights:
    named = to_hugging_face(SHAPE, _decoder(5, WHOLE).named_parameters())
    kept = ((name, tensor.detach()) for name, tensor in named if name != lacks)
    return Weights(version=1, named=kept)


def _story(engine: TorchEngine, wire=None) -> dict:
    """Everything that is asked of an engine, and what it says."""
    told: dict = {"first": engine.generate(_requests()), "canary": engine.canary(CANARY)}
    told["digest"] = engine.state_digest()
    told["cut"] = asyncio.run(_cut_short(engine))
    if wire is not None:
        wire.rest()  # as when the devices are lent to training
    engine.sleep()
    engine.wake()
    engine.update(_new_weights())
    told["after"] = engine.generate(_requests(7))
    told["new digest"] = engine.state_digest()
    told["new weights"] = {name: tensor.clone() for name, tensor in engine.named()}
    try:
        engine.update(_new_weights(lacks="model.layers.1.self_attn.k_proj.weight"))
    except SyncError as error:
        told["refusal"] = str(error)
    engine.update(Weights(version=4, named=[], is_shared=True))
    engine.forget()
    told["last"] = engine.generate(_requests())
    told["preempted"] = engine.num_preempted
    engine.close()
    return told


async def _cut_short(engine: TorchEngine) -> list[Completion | None]:
    """Some are cancelled, some aborted, the rest end."""
    futures = [engine.add(request) for request in _requests(20)]
    for _ in range(5):
        await asyncio.sleep(0)
    futures[0].cancel()
    await engine.abort(["20-1", "21-3"])
    rest = [engine.add(request) for request in _requests(30)]
    done = await asyncio.gather(*futures, *rest, return_exceptions=True)
    return [None if isinstance(one, asyncio.CancelledError) else one for one in done]


def shared(rank: int, world: int) -> dict | int:
    mesh = make_mesh(rank, Sizes(tensor=world), dist.new_group)
    wire = open_wire(mesh, torch.device("cpu"))
    # what training with sequence parallelism shares with its engine
    part = Part(mesh=mesh, sequence_parallel=True)
    if rank == 0:
        return _story(_engine(part, wire), wire)
    engine, rests = _engine(part), 0
    while follow(engine, wire):
        rests += 1
    assert engine.num_preempted > 0 and not engine.stats().num_running
    return rests


@pytest.fixture(scope="module")
def found(on_ranks) -> list:
    return on_ranks(shared, 2)


@pytest.fixture(scope="module")
def alone() -> dict:
    torch.set_num_threads(1)
    return _story(_engine(WHOLE))


@pytest.mark.parametrize("part", ["first", "cut", "after", "last"])
def test_tokens_are_those_of_one_process(found, alone, part):
    ours, theirs = found[0][part], alone[part]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.tokens_C.tolist() == other.tokens_C.tolist()
        assert (one.id, one.ending, one.matched) == (other.id, other.ending, other.matched)
        assert one.num_cached == other.num_cached
        np.testing.assert_allclose(one.logprobs_C, other.logprobs_C, rtol=1e-4, atol=1e-5)
        assert one.version_C.tolist() == other.version_C.tolist()


def test_canary_digests_and_refusals_are_those_of_one_process(found, alone):
    np.testing.assert_allclose(found[0]["canary"], alone["canary"], rtol=1e-5, atol=1e-6)
    assert found[0]["digest"] == alone["digest"] != alone["new digest"]
    assert found[0]["new digest"] == alone["new digest"]
    assert found[0]["new weights"].keys() == alone["new weights"].keys()
    for name, tensor in found[0]["new weights"].items():
        assert tensor.equal(alone["new weights"][name])
    assert "did not come" in alone["refusal"] and found[0]["refusal"] == alone["refusal"]


def test_the_story_preempts_and_rests(found, alone):
    assert found[0]["preempted"] == alone["preempted"] > 0
    assert found[1] == 1
