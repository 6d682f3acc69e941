"""A model that two ranks hold in parts, sent to an engine that two others hold in parts."""

from datetime import timedelta
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from tandem.carriers.group import Group, Member, open_store
from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.replay import Replayed
from tandem.models.decoder import Decoder
from tandem.models.part import Part
from tandem.models.shape import Shape
from tandem.parallel import make_mesh, sizes_of
from tandem.train.model import Model
from tandem.train.publish import weights_of
from tandem.types import Weights

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
    tied=False,
    qkv_bias=True,
    qk_norm=True,
    max_positions=128,
    eos_token_ids=(60,),
)
SENDER, RECEIVERS = 0, (2, 3)
MOST_BYTES = 5000


def update(rank, world):
    """What this rank saw of an update: a rank of the trainer its digests and how many collectives
    the proofs, the walk and the digests took; one of the engine its digests before and after."""
    mesh = make_mesh(rank, sizes_of(world, tensor=2), dist.new_group)
    decoder = Decoder(SHAPE, torch.float32, "cpu", Part(mesh=mesh))
    decoder.init_random(0 if rank < 2 else 1)
    store = open_store("127.0.0.1") if rank == SENDER else None
    port = [None if store is None else store.port]
    dist.broadcast_object_list(port, src=SENDER)
    place = [SENDER, *RECEIVERS].index(rank) if rank != 1 else None
    group = None
    if place is not None:
        member = Member(host="127.0.0.1", port=port[0], rank=place, size=3)
        group = Group(member, torch.device("cpu"), timedelta(seconds=60), store).join()
    model = Model([decoder])
    if rank in RECEIVERS:
        cfg = EngineConfig(engine_cache_tokens=64, engine_max_running=2)
        engine = TorchEngine(decoder, None, cfg, "cpu", ())
        before = engine.state_digest()
        engine.update(Weights(version=5, named=group.receive(5)))
        found = before, engine.state_digest(), engine.stats().version
    else:
        counts = [count(mesh)]
        weights = weights_of(model, 5, Replayed())
        counts.append(count(mesh))
        if rank == SENDER:
            group.send(5, weights.named, MOST_BYTES)
        else:
            for _ in weights.named:
                pass
        counts.append(count(mesh))
        digests = dict(weights.digests)
        counts.append(count(mesh))
        num_cut = sum(bool(shard.cuts) for shard in decoder.shards().values())
        found = digests, [after - before for before, after in pairwise(counts)], num_cut
    dist.barrier()
    if group is not None:
        group.abort()
    return found


def count(mesh):
    """How many collectives the ranks that share matrices have started."""
    return mesh.tensor.group._get_sequence_number_for_group()


@pytest.fixture(scope="module")
def updated(on_ranks):
    return on_ranks(update, 4)


def test_ranks_of_an_engine_cut_their_parts_of_what_ranks_gathered(updated):
    (sent, *_), (walked, *_), *engines = updated
    assert walked == sent
    for before, after, version in engines:
        assert before != sent
        assert after == sent
        assert version == 5


def test_a_tensor_is_gathered_once_for_its_way_and_its_digest(updated):
    for _, (of_proofs, of_walk, of_digests), num_cut in updated[:2]:
        assert of_walk == num_cut
        assert of_digests == 0
        assert of_proofs < num_cut  # the canary's own
