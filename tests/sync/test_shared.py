"""A weight update is believed only with its proofs."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.errors import SyncError
from tandem.kernels.replay import Replayed
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape
from tandem.sync import CopiedSync, SharedSync
from tandem.train.model import Model
from tandem.train.publish import weights_of
from tandem.types import Canary, Digests, EngineStats, Weights

TOKENS_T = np.arange(5, dtype=np.int32)
STORED = {"embed": torch.arange(6.0).view(2, 3), "head": torch.ones(4)}
SENT = Weights(
    version=4,
    named=(),
    is_shared=True,
    digests={"embed": 17, "head": 23},
    canary=Canary(tokens_T=TOKENS_T, read=np.array([0, -1, -2, -1, -3], np.float32).copy),
)
SHARED = replace(SENT, stored=STORED)
SHAPE = Shape(
    family="qwen3",
    num_layers=2,
    width=32,
    ffn=48,
    num_heads=4,
    num_key_heads=2,
    head_size=64,
    vocab=64,
    eps=1e-6,
    rope_theta=1e4,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=64,
)


class Holder:
    """An engine that holds what it is told to hold."""

    def __init__(self, *, takes_version=True, digests=None, drift=0.0, tensors=STORED) -> None:
        self._takes_version = takes_version
        self._digests = digests or dict(SENT.digests)
        self._drift = drift
        self._tensors = tensors
        self.version = 0

    def update(self, weights):
        if self._takes_version:
            self.version = weights.version

    def stats(self):
        numbers = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        return EngineStats(**{**numbers, "version": self.version, "is_asleep": False})

    def tensors(self):
        return self._tensors

    def state_digest(self, *, as_stored=False):
        assert as_stored
        return self._digests

    def canary(self, tokens_T):
        assert (tokens_T == TOKENS_T).all()
        return SENT.canary.logprobs_T + np.array([0, 1, -1, 1, -1]) * self._drift


def publish(*engines, dtype="float32", weights=SENT):
    return SharedSync(engines, dtype=dtype).publish(weights)


@pytest.mark.parametrize("weights", [SENT, SHARED])
def test_engines_that_hold_what_was_sent_are_believed(weights):
    metrics = publish(Holder(), Holder(drift=1e-5), weights=weights)
    assert metrics["perf/update_weights_time"] >= metrics["perf/update_weights_check_time"] >= 0


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        (Holder(takes_version=False), "reports weight version 0, not 4"),
        (Holder(digests={"embed": 17, "head": 24}), "other bytes in 1 of 2 tensors, first head"),
        (Holder(digests={"embed": 17}), "other bytes in 1 of 2 tensors, first head"),
        (Holder(drift=0.5), "differ by 0.5"),
        (Holder(drift=float("nan")), "differ by nan"),
    ],
)
def test_an_engine_that_missed_an_update_is_named(holder, said):
    with pytest.raises(SyncError, match=said) as caught:
        publish(Holder(), holder)
    assert "engine 1" in str(caught.value) and "engine 0" not in str(caught.value)


EMBED, HEAD = STORED["embed"], STORED["head"]


@pytest.mark.parametrize(
    "held",
    [
        {"embed": EMBED, "head": HEAD.clone()},
        {"embed": EMBED, "head": HEAD[:3]},
        {"embed": EMBED, "head": HEAD.expand(1, 4)},
        {"embed": EMBED, "head": HEAD.view(torch.int32)},
        {"embed": EMBED, "head": HEAD.as_strided((4,), (0,))},
        {"embed": EMBED},
        {"embed": EMBED, "head.weight": HEAD, "head": HEAD.clone()},
    ],
)
def test_an_engine_that_reads_other_storage_is_named_with_the_tensor(held):
    with pytest.raises(SyncError, match=r"engine 1 samples with storage .* first head") as caught:
        publish(Holder(), Holder(tensors=held), weights=SHARED)
    assert "engine 0" not in str(caught.value)


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        (Holder(takes_version=False), "reports weight version 0, not 4"),
        (Holder(drift=0.5), "differ by 0.5"),
    ],
)
def test_the_right_storage_excuses_neither_version_nor_canary(holder, said):
    with pytest.raises(SyncError, match=said):
        publish(holder, weights=SHARED)


def test_the_canary_allows_what_precision_explains():
    publish(Holder(drift=0.05), dtype="bfloat16")
    with pytest.raises(SyncError):
        publish(Holder(drift=0.05), dtype="float32")


def test_an_update_without_proofs_is_judged_by_its_version():
    publish(Holder(digests={}, drift=9.0), weights=replace(SENT, digests=None, canary=None))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def pair(device):
    """A model, and an engine on a decoder whose parameters are the model's."""
    torch.set_num_threads(1)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    decoder, twin = (Decoder(SHAPE, dtype, device) for _ in range(2))
    decoder.init_random(0)
    for name, parameter in twin.named_parameters():
        parameter.data = decoder.get_parameter(name).data
    cfg = EngineConfig(engine_max_running=2, engine_cache_tokens=64)
    engine = TorchEngine(twin, None, cfg, device, ())
    yield Model([decoder]), engine, twin
    engine.close()


def unread():
    raise AssertionError("the digests were looked at")


def test_storage_that_is_shared_is_not_read_again_for_its_digests(pair):
    model, engine, _ = pair
    weights = replace(weights_of(model, 3, Replayed()), digests=Digests(unread))
    SharedSync([engine], dtype="float32").publish(weights)
    assert engine.stats().version == 3


def test_an_engine_whose_tensor_became_a_copy_is_named_with_the_tensor(pair):
    model, engine, twin = pair
    out = twin.layers[1].out
    out.weight = torch.nn.Parameter(out.weight.detach().clone())  # the same bytes
    with pytest.raises(SyncError, match=r"in 1 of \d+ tensors, first layers.1.out.weight"):
        SharedSync([engine], dtype="float32").publish(weights_of(model, 3, Replayed()))


def test_an_engine_whose_tensor_is_not_the_trained_one_is_named_though_they_share_a_decoder(device):
    decoder = Decoder(SHAPE, torch.float32, device)
    decoder.init_random(0)
    model = Model([decoder])
    decoder.norm.weight = torch.nn.Parameter(decoder.norm.weight.detach().clone())
    cfg = EngineConfig(engine_max_running=2, engine_cache_tokens=64)
    engine = TorchEngine(decoder, None, cfg, device, ())
    with pytest.raises(SyncError, match=r"in 1 of \d+ tensors, first norm.weight"):
        SharedSync([engine], dtype="float32").publish(weights_of(model, 3, Replayed()))
    engine.close()


def test_an_engine_that_copies_must_show_the_trainers_digests(pair):
    model, engine, twin = pair
    for parameter in twin.parameters():
        parameter.data = torch.zeros_like(parameter)
    sync = CopiedSync([engine], dtype="float32")
    sync.publish(weights_of(model, 1, Replayed()))
    weights = weights_of(model, 2, Replayed())
    wrong = dict(weights.digests) | {"layers.0.down.weight": 1}
    with pytest.raises(SyncError, match=r"other bytes in 1 of \d+ tensors, first layers.0.down"):
        sync.publish(replace(weights, digests=wrong))


def test_proofs_are_of_the_weights_as_they_were_when_they_were_asked_for(pair):
    model, _, twin = pair
    before = weights_of(model, 1, Replayed())
    again = weights_of(model, 1, Replayed())
    with torch.no_grad():
        twin.layers[0].down.weight.mul_(2)
    after = weights_of(model, 2, Replayed())
    assert before.digests == again.digests != after.digests
    assert (before.canary.logprobs_T == again.canary.logprobs_T).all()
    assert (before.canary.logprobs_T != after.canary.logprobs_T).any()


def test_proofs_reach_another_process_as_they_are(pair):
    weights = weights_of(pair[0], 1, Replayed())
    digests, canary = pickle.loads(pickle.dumps((weights.digests, weights.canary)))
    assert digests == dict(weights.digests)
    assert (canary.tokens_T == weights.canary.tokens_T).all()
    assert (canary.logprobs_T == weights.canary.logprobs_T).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("device", [torch.device("cuda")])
def test_an_update_waits_for_the_device_only_when_all_is_launched(pair):
    model, engine, _ = pair
    replayed, sync = Replayed(), SharedSync([engine], dtype="bfloat16")
    for version in range(4):
        if version == 3:  # by now the canaries are replayed
            torch.cuda.set_sync_debug_mode("error")  # at every wait but those for an event
        try:
            sync.publish(weights_of(model, version, replayed))
        finally:
            torch.cuda.set_sync_debug_mode("default")
