"""Whether optimizer state makes room for the engines' caches while they sample."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem.config import Config
from tandem.engine.torch.memory import DEVICE_FRACTION, device_cache_bytes, token_bytes
from tandem.models.build import dtype_of
from tandem.models.shape import num_parameters
from tandem.observe import get_logger
from tandem.runtime.building import Known
from tandem.runtime.servers import largest_batch
from tandem.runtime.turns import Ranks
from tandem.train import LocalTrainer

log = get_logger("run")

GIB = 1 << 30
HOST_SHARE = 0.75
"""Share of a host's free memory that optimizer state may take: copies for checkpoints, prompts and
samples want theirs."""
CGROUP = Path("/sys/fs/cgroup")
"""Where the limits of a container stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a process that trains sees of its device and its host, in bytes."""

    state: int  # of its optimizers, which could lie in host memory
    held: int = 0  # device memory that it uses, the state included
    free: int = 0  # device memory that nobody uses
    total: int = 0
    host: str = ""
    host_free: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What an engine takes of each of its devices, in bytes."""

    cache: int  # for the answers that run at once, at their longest
    weights: int  # of its own; 0 where it reads the trainer's
    fraction: float  # of the device, for weights and cache
    sees_free: bool  # the fraction is of what is free when it looks (SGLang), not of all


def room_of(trainer: LocalTrainer, device: torch.device) -> Room:
    """What this process sees; of a CPU the state alone."""
    state = trainer.num_movable_bytes
    if device.type != "cuda":
        return Room(state=state)
    trainer.trim()
    free, total = torch.cuda.mem_get_info(device)
    return Room(
        state=state,
        held=torch.cuda.memory_allocated(device),
        free=free,
        total=total,
        host=socket.gethostname(),
        host_free=host_free(),
    )


def host_free() -> int:
    """Host memory that could be taken now, by the kernel's count and the container's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found = int(rows["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.is_file() and limit.read_text().strip() != "max":
        used = int((CGROUP / "memory.current").read_text())
        rows = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        found = min(found, int(limit.read_text()) - used + int(rows["inactive_file"]))
    return max(0, found)


def demand_of(cfg: Config, known: Known, device_type: str, *, has_weights: bool) -> Demand:
    """What an engine wants for the largest round that is asked of it.

    Prompts count where `--rollout-max-prompt-len` says how long they may be. `has_weights`: it does
    not read the trainer's.
    """
    num_ranks, engine = cfg.cluster.rollout_num_gpus_per_engine, cfg.engine
    shape, max_context = known.opened.shape, known.opened.max_context
    is_ours = engine.rollout_engine == "torch"
    answer_len = cfg.rollout.rollout_max_response_len or max_context
    longest = min(max_context, (cfg.data.rollout_max_prompt_len or 0) + answer_len)
    num_running = largest_batch(cfg, known.opened.held_out)
    if is_ours:
        num_running = min(num_running, engine.engine_max_running)
    num_tokens = (engine.engine_cache_tokens if is_ours else None) or num_running * longest
    dtype, fraction = dtype_of(cfg.model.dtype, device_type), engine.sglang_mem_fraction_static
    return Demand(
        cache=num_tokens * token_bytes(shape, dtype, num_ranks=num_ranks),
        weights=has_weights * num_parameters(shape) * dtype.itemsize // num_ranks,
        fraction=DEVICE_FRACTION if fraction is None else fraction,
        sees_free=not is_ours,
    )


def make_room(
    cfg: Config,
    known: Known,
    ranks: Ranks,
    look: Callable[[], Sequence[Room]],
    device_type: str,
    *,
    has_weights: bool,
) -> None:
    """Puts the optimizers' state to sleep if it is to wait in host memory while engines sample.

    That is said here, before there are engines: they size their caches by what they find. `look`
    gives what each rank sees.
    """
    if may_move(cfg, device_type):
        demand = demand_of(cfg, known, device_type, has_weights=has_weights)
        moves, why = moves_state(cfg, look(), demand)
        log.info(why)
        if moves:
            ranks.sleep()


def may_move(cfg: Config, device_type: str) -> bool:
    """Whether there is anything to decide: training and sampling take turns on a GPU.

    On a CPU, where it makes no room, and where engines only look at held-out sets, what was said
    alone counts.
    """
    if cfg.debug.debug_train_only or cfg.sync.asynchronous != "off":
        return False
    is_sampled = cfg.algo.loss_type != "sft_loss" and not cfg.debug.load_forge_rollout_data
    return (device_type == "cuda" and is_sampled) or wish_of(cfg) is not None


def moves_state(cfg: Config, rooms: Sequence[Room], demand: Demand) -> tuple[bool, str]:
    """Whether optimizer state is to lie in host memory while engines sample, and why.

    It is where `--offload-train` was said; else where a cache beside it could not hold the answers
    that run at once, at their longest, and the hosts have the room.
    """
    state = sum(room.state for room in rooms)
    what = f"optimizer state ({state / GIB:.1f} GiB)"
    if not state:
        return False, "no optimizer state is on the devices, so none makes room for sampling"
    wish = wish_of(cfg)
    if wish is not None:
        how = "waits in host memory while engines sample" if wish else "stays where it is"
        return wish, f"{what} {how}: --{'' if wish else 'no-'}offload-train"
    beside = min(_cache(room, demand) for room in rooms)
    alone = min(_cache(room, demand, room.state) for room in rooms)
    told = f"beside it a cache has {beside / GIB:.1f} GiB and wants {demand.cache / GIB:.1f}"
    if beside >= demand.cache:
        return False, f"{what} stays where it is while engines sample: {told}"
    by_host = Counter[str]()
    for room in rooms:
        by_host[room.host] += room.state
    for room in rooms:
        if by_host[room.host] > HOST_SHARE * room.host_free:
            return False, (
                f"{what} stays where it is: {told}, but {room.host} has "
                f"{room.host_free / GIB:.1f} GiB of host memory free for "
                f"{by_host[room.host] / GIB:.1f}"
            )
    return True, (
        f"{what} waits in host memory while engines sample: {told}; without it "
        f"{alone / GIB:.1f} (--no-offload-train keeps it where it is)"
    )


def wish_of(cfg: Config) -> bool | None:
    """What was said with `--offload-train` or `--offload`; None: memory decides."""
    said = not cfg.origins.get("offload_train", "derived").startswith("derived")
    return cfg.cluster.offload_train if said or cfg.cluster.offload else None


def _cache(room: Room, demand: Demand, moved: int = 0) -> int:
    """What a cache gets on a device from which so much has moved away."""
    free, held = room.free + moved - demand.weights, room.held - moved + demand.weights
    if demand.sees_free:
        return max(0, int(demand.fraction * (room.free + moved)) - demand.weights)
    return device_cache_bytes(demand.fraction, total=room.total, free=free, held=held)
