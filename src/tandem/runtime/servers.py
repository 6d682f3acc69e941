"""A trainer in this process, and SGLang servers beside it that sample."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import ceil
from typing import TypeVar

import torch

from tandem.config import Config
from tandem.contracts import Trainer
from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.flags import check_servers
from tandem.engine.sglang.launch import (
    Brings,
    Hosting,
    Place,
    Spot,
    here,
    launch,
    python_of,
)
from tandem.engine.sglang.weights import SglangSync
from tandem.errors import ConfigError
from tandem.loop import Devices
from tandem.observe import get_logger
from tandem.rollout import EvaluationSet
from tandem.runtime.halves import IdleTrainer
from tandem.runtime.sampling import num_engines
from tandem.runtime.turns import Ranks
from tandem.sync.check import failures_of

log = get_logger("servers")

Made = TypeVar("Made")


def place_of(
    cfg: Config, device: torch.device, dtype: str, held_out: Sequence[EvaluationSet]
) -> Place:
    """Where the servers of this host run; raises ConfigError when it has too few devices.

    With `--colocate` they begin at the trainer's device, else at the one after it.
    """
    num_gpus, first = cfg.cluster.rollout_num_gpus or 1, 0 if cfg.cluster.colocate else 1
    per_engine, num_here = cfg.cluster.rollout_num_gpus_per_engine, torch.cuda.device_count()
    is_ours = not cfg.rollout.rollout_external_engine_addrs
    wanted = first + max(num_gpus, per_engine)
    if device.type == "cuda" and is_ours and num_here < wanted:
        hint = "" if first == 0 else ", or add --colocate so that they share the trainer's"
        raise ConfigError(
            f"--rollout-engine sglang: the trainer and its servers want {wanted} devices, and this "
            f"machine has {num_here}; lower --rollout-num-gpus or --rollout-num-gpus-per-engine"
            + hint
        )
    engines = range(num_engines(cfg))
    return Place(
        dtype=dtype,
        is_cpu=device.type == "cpu",
        engines=tuple((Spot(first_gpu=first + one * per_engine),) for one in engines),
        shares_device=cfg.cluster.colocate,
        largest_batch=largest_batch(cfg, held_out),
    )


def largest_batch(cfg: Config, held_out: Sequence[EvaluationSet]) -> int:
    """How many requests an engine has at work at once: what a rollout or an evaluation asks of it,
    and `--sglang-server-concurrency` at most."""
    rollout, limit = cfg.rollout, cfg.engine.sglang_server_concurrency
    prompts = rollout.over_sampling_batch_size
    hooks = (
        rollout.rollout_function_path,
        rollout.custom_generate_function_path,
        cfg.eval.eval_function_path,
        *(one.cfg.custom_generate_function_path for one in held_out),
    )
    is_free = cfg.sync.asynchronous == "full" or any(hooks)  # to ask as much as it likes
    if is_free or prompts is None:
        return limit
    engines = num_engines(cfg)
    sampled = ceil(prompts / engines) * cfg.data.n_samples_per_prompt
    looked_at = [
        ceil(len(one.prompts) / engines) * one.cfg.n_samples_per_eval_prompt for one in held_out
    ]
    return min(limit, max(sampled, sum(looked_at)))


def with_servers(
    cfg: Config,
    place: Place,
    stack: ExitStack,
    build_trainer: Callable[[], Made],
    brings: Brings | None = None,
    hosting: Hosting = here,
) -> tuple[Made, SglangEngine]:
    """The trainer, and the engine over servers that answer; raises ConfigError at once where they
    cannot be started, and EngineError with the last lines of one that ended. `brings` and `hosting`
    are those of `launch`.

    Servers on devices of their own start while the trainer is built. Those that share its devices
    start after it: a server sizes its cache by what is free when it looks.
    """
    start = partial(_start, cfg, place, stack, brings, hosting)
    if not cfg.rollout.rollout_external_engine_addrs:
        check_servers(python_of(cfg), cfg.passthrough.sglang)
    begun_s = time.perf_counter()
    engine = None if place.shares_device else start()
    trainer = build_trainer()
    built_s = time.perf_counter()
    if engine is None:
        engine = start()
    engine.fleet.until_up()
    up_s = time.perf_counter()
    log.info("trainer after %.1f s, servers after %.1f s", built_s - begun_s, up_s - begun_s)
    return trainer, engine


def _start(
    cfg: Config, place: Place, stack: ExitStack, brings: Brings | None, hosting: Hosting
) -> SglangEngine:
    engine = launch(cfg, place, brings, hosting)
    stack.callback(engine.close)
    for member in engine.fleet.members:
        verb = "is used" if member.process is None else "is starting"
        log.info("%s at %s %s", member.name, member.server.url, verb)
    return engine


def build_server_sync(
    cfg: Config, engine: SglangEngine, trainer: Trainer, dtype: str
) -> SglangSync:
    """What publishes weights to the servers.

    While a synchronous run samples, the trainer still has the weights of the last update, so a
    server that died gets them again.
    """
    again = trainer.weights if cfg.sync.asynchronous == "off" else None
    return SglangSync(engine.fleet, failures_of, dtype=dtype, again=again)


def server_devices(engine: SglangEngine, place: Place, ranks: Ranks | IdleTrainer) -> Devices:
    """Whose turn it is where trainer and servers share a device; nothing where they do not.

    After sampling the servers give all their memory back; the update after training takes room for
    weights first, then for cache and graphs. Optimizer state that has made room for them comes back
    in between.
    """
    if isinstance(ranks, IdleTrainer) or not place.shares_device:
        return Devices()
    moves_state = ranks.is_asleep

    @contextmanager
    def sampling() -> Iterator[None]:
        if moves_state:
            ranks.sleep()
        yield
        if not engine.stats().num_running:
            engine.sleep()

    @contextmanager
    def learning() -> Iterator[None]:
        if moves_state:
            ranks.wake()
        yield

    @contextmanager
    def publishing() -> Iterator[None]:
        if moves_state:
            ranks.sleep()
        else:
            ranks.trim()
        yield

    return Devices(sampling=sampling, learning=learning, publishing=publishing)
