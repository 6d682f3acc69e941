"""A checkpoint of one layout is loaded in another, bit for bit, optimizer state included."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # once for all ranks: it takes a second

from tandem.algo import advantage
from tandem.checkpoint import torch_dist
from tandem.checkpoint.background import BackgroundSaves
from tandem.checkpoint.hugging_face import read_hugging_face
from tandem.checkpoint.names import our_shapes
from tandem.checkpoint.pieces import as_pieces
from tandem.config import AlgoConfig, BatchConfig, OptimConfig, ParallelConfig
from tandem.models.decoder import Decoder
from tandem.models.part import parts_of
from tandem.packing import pack
from tandem.parallel import Mesh, make_mesh, sizes_of
from tandem.parallel.mesh import AXES
from tandem.train import Learning, LocalTrainer, layout_of, schedule_of

spec = importlib.util.spec_from_file_location(
    "axes_cases", Path(__file__).with_name("axes_cases.py")
)
cases = importlib.util.module_from_spec(spec)
sys.modules["axes_cases"] = cases
spec.loader.exec_module(cases)

DENSE = {
    "dp4": {},
    "tp2 pp2": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
    "dp2 cp2": {"context": 2},
    "dp2 tp2": {"tensor": 2},
}
EXPERTS = {"dp2 ep2": {"expert": 2}, "pp2 ep2": {"pipeline": 2, "expert": 2}, "dp4": {}}
ALONE = "alone"


def trainer_of(task, place, rank: int, world: int):
    """A trainer in bf16, so that masters are apart from weights."""
    sizes = {name: size for name, size in place.items() if name in AXES}
    parallel = {name: value for name, value in place.items() if name not in AXES}
    mesh = make_mesh(rank, sizes_of(world, **sizes), dist.new_group)
    return trainer_on(task, mesh, ParallelConfig(**parallel))


def trainer_on(task, mesh: Mesh, cfg: ParallelConfig) -> LocalTrainer:
    shape = replace(cases.SHAPE, **task.shape)
    policy = [Decoder(shape, torch.bfloat16, "cpu", part) for part in parts_of(shape, mesh, cfg)]
    for part in policy:
        part.init_random(0)
    batch = BatchConfig(global_batch_size=8, **task.batch)
    optim = OptimConfig(lr=1e-2, lr_decay_style="constant")
    learning = Learning(
        algo=AlgoConfig(use_routing_replay=shape.mixture is not None),
        batch=batch,
        optim=optim,
        schedule=schedule_of(optim, step_size=8, num_rollouts=80),
        step_size=8,
        layout=layout_of(policy[0], batch),
    )
    return LocalTrainer(policy, learning)


def learn(trainer) -> None:
    """Two optimizer steps."""
    groups = trainer.annotate(cases.make_groups())
    cfg = trainer._learning
    trainer.step_on(pack(advantage(groups, cfg.algo), trainer.layout, cfg.batch, cfg.algo))


def unequal(trainer, folder: Path) -> list[str]:
    """Pieces of a trainer that are not what a checkpoint holds there."""
    pieces = as_pieces(trainer.pieces())
    saved = torch_dist.saved_tensors(folder)
    wholes = {name: torch.empty(saved[name][0], dtype=saved[name][1]) for name in sorted(saved)}
    torch_dist.read_into(folder, wholes)
    wrong = []
    for name, piece in pieces.items():
        box = wholes[name]
        for dim, (start, size) in enumerate(zip(piece.starts, piece.tensor.shape, strict=True)):
            box = box.narrow(dim, start, size)
        if not piece.tensor.equal(box):
            wrong.append(name)
    return wrong


def reshard(task, places, root: Path, rank: int, world: int) -> list[str]:
    """Every layout's checkpoint, loaded in the next layout and by one process: what went wrong."""
    wrong, names = [], list(places)
    for number, (where, place) in enumerate(places.items()):
        source = trainer_of(task, place, rank, world)
        learn(source)
        folder = source.save(root, number, {"number": number})
        wrong += [f"{where} saved {name} wrongly" for name in unequal(source, folder)]
        for other in (names[(number + 1) % len(names)], ALONE):
            if other == ALONE:
                target = trainer_on(task, Mesh(), ParallelConfig())
            else:
                target = trainer_of(task, places[other], rank, world)
            if target.load(root, number) != {"number": number}:
                wrong.append(f"{where} to {other}: the extra state is another")
            wrong += [f"{where} to {other}: {name}" for name in unequal(target, folder)]
            if target._descent.state() != source._descent.state():
                wrong.append(f"{where} to {other}: the schedule stands elsewhere")
    return wrong


def export(root: Path, rank: int, world: int) -> list[str]:
    """A save in the background, and a Hugging Face folder, of a model in four parts."""
    task = cases.TASKS["grpo"]
    trainer = trainer_of(task, DENSE["tp2 pp2"], rank, world)
    trainer._saves = BackgroundSaves(dist.new_group())
    origin, shape = root / "origin", cases.SHAPE
    if rank == 0:
        origin.mkdir()
        (origin / "config.json").write_text(json.dumps(CONFIG))
    trainer.save_hugging_face(root / "hf", origin)
    trainer.save(root, 0, {})
    learn(trainer)  # while it is written
    trainer.finish_saves()
    dist.barrier()
    named = {
        torch_dist.MODEL + name: torch.zeros(size, dtype=torch.bfloat16)
        for name, size in our_shapes(shape).items()
    }
    torch_dist.load(root, named, 0, prefix=torch_dist.MODEL)
    read = dict(read_hugging_face(shape, root / "hf"))
    return [name for name in read if not read[name].equal(named[torch_dist.MODEL + name])]


CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": cases.SHAPE.num_layers,
    "hidden_size": cases.SHAPE.width,
    "num_attention_heads": cases.SHAPE.num_heads,
    "num_key_value_heads": cases.SHAPE.num_key_heads,
    "head_dim": cases.SHAPE.head_size,
    "intermediate_size": cases.SHAPE.ffn,
    "vocab_size": cases.SHAPE.vocab,
    "max_position_embeddings": cases.SHAPE.max_positions,
    "rope_theta": cases.SHAPE.rope_theta,
    "tie_word_embeddings": True,
}


def work(rank: int, world: int) -> dict[str, list[str]]:
    box = [mkdtemp()]
    dist.broadcast_object_list(box)
    roots = [Path(box[0]) / name for name in ("dense", "experts", "export")]
    if rank == 0:
        for root in roots:
            root.mkdir()
    dist.barrier()
    return {
        "dense": reshard(cases.TASKS["grpo"], DENSE, roots[0], rank, world),
        "experts": reshard(cases.EXPERTS["experts"], EXPERTS, roots[1], rank, world),
        "export": export(roots[2], rank, world),
    }


@pytest.fixture(scope="module")
def found(on_ranks):
    return on_ranks(work, 4)


@pytest.mark.parametrize("model", ["dense", "experts"])
def test_weights_and_optimizer_are_equal_in_another_layout(found, model):
    assert [one[model] for one in found] == [[]] * 4


def test_a_model_in_four_parts_is_saved_in_the_background_and_as_hugging_face(found):
    assert [one["export"] for one in found] == [[]] * 4
