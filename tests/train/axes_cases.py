"""The same rollouts learned on several processes, and on one.

    python tests/train/axes_cases.py FOLDER PLACES

PLACES is JSON: by the number of processes and a name, sizes of axes and settings of
`ParallelConfig`. What process R of a world of W finds goes to FOLDER/W.R.txt, a line each.
"""

import json
import multiprocessing
import sys
import time
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # once for all processes: it takes a second

from tandem.algo import advantage
from tandem.checkpoint.pieces import as_pieces
from tandem.config import AlgoConfig, BatchConfig, OptimConfig, ParallelConfig
from tandem.kernels.digest import digest_all
from tandem.models.decoder import Decoder, Recompute
from tandem.models.mixture import Mixture
from tandem.models.part import parts_of
from tandem.models.shape import Shape
from tandem.packing import pack
from tandem.parallel import Mesh, make_mesh, sizes_of
from tandem.parallel.mesh import AXES
from tandem.train import Beside, Learning, LocalTrainer, layout_of, schedule_of
from tandem.train.critic import Critic, ValueModel
from tandem.train.descent import Descent
from tandem.train.lora import TARGETS, Adapters
from tandem.types import Ending, Group, Prompt, Sample

SHAPE = Shape(
    family="qwen3",
    num_layers=4,
    width=16,
    ffn=24,
    num_heads=4,
    num_key_heads=2,
    head_size=8,
    vocab=61,  # a number that no axis divides
    eps=1e-6,
    rope_theta=1e4,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=64,
)
MIXTURE = Mixture(
    num_experts=4,
    per_token=2,
    ffn=12,
    layers=(0, 2, 3),
    normalises=True,
    shared_ffn=10,
    has_shared_gate=True,
)
NUM_GROUPS, NUM_SAMPLES = 4, 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned, whatever the mesh."""

    algo: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    recompute: Recompute | None = None
    has_adapters: bool = False


DYNAMIC = {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 48, "balance_data": True}
STATIC = {"micro_batch_size": 3}
FULL = {"use_kl_loss": True, "kl_loss_coef": 0.1, "entropy_coef": 0.01, "eps_clip_high": 0.28}

TASKS = {
    # two optimizer steps, so the second one's ratios are not 1
    "grpo": Task(algo=FULL, batch=DYNAMIC),
    "per token": Task(
        algo={"calculate_per_token_loss": True, "use_tis": True, "tis_batch_normalize": True},
        batch=STATIC,
        shape={"tied": False, "qkv_bias": True, "qk_norm": False},
    ),
    "gspo": Task(
        algo={"advantage_estimator": "gspo", "eps_clip": 3e-4, "eps_clip_high": 4e-4},
        batch=DYNAMIC,
        optim={"optimizer_cpu_offload": True, "freeze_params_name_list": ("norm1",)},
        recompute=Recompute(),
    ),
}
EXPERTS = {
    "experts": Task(
        algo=FULL | {"use_routing_replay": True},
        batch=DYNAMIC,
        shape={"family": "qwen3_moe", "mixture": MIXTURE},
    ),
    # experts are balanced within rows, which have one sample each wherever they are
    "balanced experts": Task(
        algo=FULL | {"moe_aux_loss_coeff": 0.1},
        batch={"micro_batch_size": 1},
        shape={"family": "qwen3_moe", "mixture": MIXTURE},
    ),
}
"""What is learned where a place says how experts are divided; elsewhere it is `TASKS`."""
COMPANIONS = {
    "ppo": Task(
        algo={"advantage_estimator": "ppo", "keep_old_actor": True, "value_clip": 0.01},
        batch=DYNAMIC,
    ),
    "lora": Task(algo=FULL, batch=DYNAMIC, optim={"lr": 3e-2}, has_adapters=True),
}
"""What is learned beside them where a place has the key `companions`."""
ALL = TASKS | EXPERTS | COMPANIONS

ROUNDING = 1e-6
"""Of means of differences between log-probs near 5, which round by 2.4e-7 each."""


@dataclass(frozen=True)
class Learned:
    """What came of it, on the host."""

    rows: tuple[dict[str, float], ...]
    num_tokens: int
    old_logprobs: np.ndarray
    weights: dict[str, np.ndarray]
    digests_are_of_weights: bool
    canary: np.ndarray
    state: dict[str, np.ndarray]  # what a checkpoint holds, whole; empty where none was written


def learn(task: Task, mesh: Mesh, parallel: dict[str, Any], folder: Path | None = None) -> Learned:
    """Two optimizer steps on one rollout; with a folder, saved there and read by one process."""
    shape = replace(SHAPE, **task.shape)
    trainer = make_trainer(task, shape, mesh, ParallelConfig(**parallel))
    trainer.weights(0)
    learning = trainer._learning
    groups = trainer.annotate(make_groups())
    steps = pack(advantage(groups, learning.algo), trainer.layout, learning.batch, learning.algo)
    stats = trainer.step_on(steps)
    weights = trainer.weights(1)
    walked = {name: tensor.clone() for name, tensor in weights.named}
    named = {name: tensor.float().numpy() for name, tensor in walked.items()}
    are_proven = weights.is_shared or weights.digests == digest_all(walked.items())
    whole = trainer if mesh.sizes.world == 1 else None
    if folder is not None:
        trainer.save(folder, 1, {})
        whole = make_trainer(task, shape, Mesh(), ParallelConfig())
        whole.load(folder)
        read = dict(whole.weights(1).named)
        are_proven &= all(torch.equal(read[name], tensor) for name, tensor in walked.items())
    columns = [column_T for group in groups for column_T in group.old_logprobs or ()]
    return Learned(
        rows=tuple(dict(row) for row in stats.rows),
        num_tokens=stats.num_tokens,
        old_logprobs=np.concatenate(columns),
        weights=named,
        digests_are_of_weights=are_proven,
        canary=weights.canary.logprobs_T,
        state={} if whole is None else whole_state(whole),
    )


def whole_state(trainer: LocalTrainer) -> dict[str, np.ndarray]:
    """A copy of everything that a checkpoint of one process holds."""
    pieces = as_pieces(trainer.pieces())
    return {name: piece.tensor.clone().numpy() for name, piece in pieces.items()}


def make_trainer(task: Task, shape: Shape, mesh: Mesh, cfg: ParallelConfig) -> LocalTrainer:
    """A trainer on this process's parts of the policy."""

    def decoders(seed: int) -> list[Decoder]:
        made = [Decoder(shape, torch.float32, "cpu", part) for part in parts_of(shape, mesh, cfg)]
        for decoder in made:
            decoder.init_random(seed)
            with torch.no_grad():
                for parameter in decoder.parameters():
                    if parameter.dim() > 1:
                        parameter.mul_(5)
        return made

    policy = decoders(0)
    adapters = critic = None
    if task.has_adapters:
        adapters = Adapters(policy[0], rank=2, alpha=4.0, targets=TARGETS, seed=0)
    batch = BatchConfig(global_batch_size=NUM_GROUPS * NUM_SAMPLES // 2, **task.batch)
    # a large eps: Adam divides by it, and would make much of the rounding of a tiny gradient
    optim = OptimConfig(
        **(
            {"lr": 1e-2, "lr_decay_style": "constant", "adam_eps": 1e-4, "clip_grad": 0.1}
            | task.optim
        )
    )
    learning = Learning(
        algo=AlgoConfig(**task.algo),
        batch=batch,
        optim=optim,
        schedule=schedule_of(optim, step_size=8, num_rollouts=80),
        step_size=8,
        layout=layout_of(policy[0], batch),
        temperature=0.8,
        recompute=task.recompute,
    )
    reference = decoders(1) if learning.algo.has_reference else None
    if learning.algo.has_critic:
        model = ValueModel(policy[0])
        critic = Critic(
            model,
            Descent(
                model.named_parameters(),
                optim,
                learning.schedule,
                8,
                spreads=model.spreads(),
                mesh=mesh,
            ),
            None,
        )
    beside = Beside(reference=reference, critic=critic, adapters=adapters)
    return LocalTrainer(policy, learning, beside=beside)


def make_groups() -> list[Group]:
    """Groups of samples of very different lengths; one without a verdict, one untrained."""
    rng = np.random.default_rng(0)
    groups = []
    for index in range(NUM_GROUPS):
        prompt_T = rng.integers(1, SHAPE.vocab, rng.integers(2, 9)).astype(np.int32)
        samples = tuple(
            _sample(rng, prompt_T, index * NUM_SAMPLES + place, place)
            for place in range(NUM_SAMPLES)
        )
        prompt = Prompt(index=index, tokens_T=prompt_T, text="", content="")
        groups.append(Group(prompt=prompt, samples=samples))
    return groups


def _sample(rng: np.random.Generator, prompt_T: np.ndarray, index: int, position: int) -> Sample:
    response_T = rng.integers(1, SHAPE.vocab, rng.integers(1, 30)).astype(np.int32)
    tokens_T = np.concatenate([prompt_T, response_T])
    sampled_T = np.arange(len(tokens_T)) >= len(prompt_T)
    return Sample(
        index=index,
        position=position,
        tokens_T=tokens_T,
        sampled_T=sampled_T,
        logprobs_T=np.where(sampled_T, -4 - rng.random(len(tokens_T)), 0).astype(np.float32),
        version_T=np.where(sampled_T, 0, -1).astype(np.int32),
        ending=Ending.ERROR if index == 9 else Ending.STOP,
        text="",
        reward=None if index == 5 else float(rng.random()),
    )


def differences(found: Learned, wanted: Learned) -> list[str]:
    """What is not the same, within 1e-5 of its size."""
    lines = []
    if found.num_tokens != wanted.num_tokens:
        lines.append(f"{found.num_tokens} tokens, wanted {wanted.num_tokens}")
    if not found.digests_are_of_weights:
        lines.append("digests are not those of the weights")
    for step, (row, right) in enumerate(zip(found.rows, wanted.rows, strict=True)):
        if set(row) != set(right):
            lines.append(f"step {step} reports {sorted(set(row) ^ set(right))} or not")
        lines += [
            f"step {step} {name}: {row[name]!r}, wanted {right[name]!r}"
            for name in right
            if not abs(row.get(name, np.nan) - right[name]) <= 1e-5 * abs(right[name]) + ROUNDING
        ]
    arrays = [("old log-probs", found.old_logprobs, wanted.old_logprobs)]
    arrays.append(("canary", found.canary, wanted.canary))
    if set(found.weights) != set(wanted.weights):
        lines.append(f"weights {sorted(set(found.weights) ^ set(wanted.weights))}")
    else:
        arrays += [(name, found.weights[name], w) for name, w in wanted.weights.items()]
    if found.state:
        arrays += [(name, found.state[name], w) for name, w in wanted.state.items()]
    for name, got, right in arrays:
        error = np.abs(got - right).max() / (np.abs(right).max() or 1.0)
        if not error <= 1e-5:
            lines.append(f"{name} differs by {error:.2g} of its largest entry")
    return lines


Places = dict[str, dict[str, Any]]


def main(rank: int, world: int, folder: Path, places: Places, wanted: dict[str, Learned]) -> None:
    """Every task in every place, by one process of its world."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=20),  # of a busy machine
    )
    with (folder / f"{world}.{rank}.txt").open("w", encoding="utf-8") as file:
        for where, place in places.items():
            sizes = {name: size for name, size in place.items() if name in AXES}
            known = {entry.name for entry in fields(ParallelConfig)}
            parallel = {name: value for name, value in place.items() if name in known}
            tasks = EXPERTS if "expert" in place else TASKS
            if place.get("companions"):
                tasks = tasks | {name: COMPANIONS[name] for name in place["companions"]}
            mesh = make_mesh(rank, sizes_of(world, **sizes), dist.new_group)
            for name, task in tasks.items():
                saved = folder / f"{where} {name}" if name in place.get("saves", ()) else None
                found = learn(task, mesh, parallel, saved)
                for line in differences(found, wanted[name]):
                    file.write(f"{where}, {name}: {line}\n")
            file.write(f"ran {where}\n")
            file.flush()
    dist.destroy_process_group()


def run(world: int, folder: Path, places: Places, wanted: dict[str, Learned]) -> bool:
    """Whether all processes of a world did their work; forked, so that they import nothing."""
    fork = multiprocessing.get_context("fork")
    running = [
        fork.Process(target=main, args=(rank, world, folder, places, wanted))
        for rank in range(world)
    ]
    for process in running:
        process.start()
    while any(process.is_alive() for process in running):
        if any(process.exitcode for process in running):
            for process in running:  # the others would wait for the one that failed
                process.kill()
        time.sleep(0.1)
    return not any(process.exitcode for process in running)


if __name__ == "__main__":
    worlds, root = json.loads(sys.argv[2]), Path(sys.argv[1])
    torch.set_num_threads(1)
    alone = {name: learn(task, Mesh(), {}) for name, task in ALL.items()}
    sys.exit(not all(run(int(world), root, worlds[world], alone) for world in worlds))
