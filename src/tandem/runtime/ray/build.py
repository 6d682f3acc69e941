"""Every stage of a run, with trainer and engines in processes of their own."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tandem.config import Config
from tandem.contracts import Sync
from tandem.loop import Devices, Stages
from tandem.models.build import dtype_of
from tandem.observe import get_logger
from tandem.parallel import Layout
from tandem.rollout import EventLoop
from tandem.runtime.building import Halves, Known, build_stages
from tandem.runtime.halves import IdleTrainer
from tandem.runtime.ray.cluster import Reserved, joined, reserved, warn_of_split_hosts
from tandem.runtime.ray.crew import Crew
from tandem.runtime.ray.engines import EngineFleet
from tandem.runtime.ray.opening import Parts, build_engines, members_apart
from tandem.runtime.ray.placement import Placement, asked, place
from tandem.runtime.ray.publish import FleetSync
from tandem.runtime.ray.rank import Recipe
from tandem.runtime.ray.servers import beside_servers, rank_environment
from tandem.runtime.ray.trainers import TrainerFleet
from tandem.runtime.ray.watch import Checks, Watch
from tandem.runtime.room import make_room
from tandem.runtime.turns import Turns, afresh
from tandem.sync import SharedSync

log = get_logger("run")


def build(cfg: Config, events: EventLoop, stack: ExitStack) -> tuple[Stages, Config]:
    """Every stage of a run on a cluster, and the configuration once the prompts are counted.

    What must be closed at the end is pushed on `stack`. Raises ResourceError within seconds where
    the cluster has not what the flags ask for.
    """
    placement = place(cfg)
    is_gpu = stack.enter_context(joined(placement.num_devices, cfg.cluster.device))
    wish = asked(placement, cfg)
    devices = stack.enter_context(reserved(placement.num_devices, wish, is_gpu=is_gpu))
    return build_stages(cfg, events, stack, partial(build_halves, placement, devices))


def build_halves(
    placement: Placement, devices: Reserved, cfg: Config, known: Known, stack: ExitStack
) -> Halves:
    """A fleet of ranks and a fleet of engines, either of which may be left out."""
    assert cfg.observe.run_dir is not None, "resolve names a run folder"
    folder = Path(cfg.observe.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(
        limit_s=cfg.cluster.heartbeat_timeout,
        folder=folder,
        say=log.warning,
        checks=health_checks(cfg),
    )
    crew = Crew(devices, watch, rank_environment(cfg))
    stack.callback(crew.close)
    stack.callback(watch.close)
    recipe = Recipe(
        cfg=cfg, shape=known.opened.shape, found=known.found, num_rollout=known.num_rollout
    )
    parts = Parts(placement, recipe, crew, watch)
    device = "cuda" if "GPU" in devices.bundle else "cpu"
    dtype = str(dtype_of(cfg.model.dtype, device)).removeprefix("torch.")
    if cfg.engine.rollout_engine == "sglang" and not cfg.debug.debug_train_only:
        held_out, trainers_of = known.opened.held_out, partial(build_trainers, parts, known, device)
        return beside_servers(cfg, placement, devices, dtype, held_out, trainers_of, stack)
    crew.begin(members_apart(placement)[1], trains=False)  # while the ranks are built
    trainers = build_trainers(parts, known, device) if placement.num_trainers else None
    engines = build_engines(parts, trainers) if placement.engines else None
    return Halves(
        trainer=IdleTrainer(None, Layout()) if trainers is None else trainers,
        layout=Layout() if trainers is None else trainers.layout,
        engine=engines,
        holds=None if engines is None else engines.pace,
        sync=build_sync(trainers, engines, dtype),
        devices=build_devices(parts, trainers, engines, device),
        dtype=dtype,
    )


def health_checks(cfg: Config) -> Checks | None:
    """When engines that hang are ended, by the flags."""
    cluster = cfg.cluster
    if not cluster.use_fault_tolerance:
        return None
    return Checks(
        interval_s=cluster.rollout_health_check_interval,
        timeout_s=cluster.rollout_health_check_timeout,
        first_wait_s=cluster.rollout_health_check_first_wait,
    )


def build_trainers(parts: Parts, known: Known, device: str) -> TrainerFleet:
    """A rank on each of the first devices; where engines come there too, it has made room."""
    names = [f"trainer rank {rank}" for rank in range(parts.placement.num_trainers)]
    workers = parts.crew.start({name: rank for rank, name in enumerate(names)}, trains=True)
    hosts = [parts.crew.where[name].address for name in names]
    warn_of_split_hosts(hosts, parts.recipe.cfg.cluster.actor_num_gpus_per_node or 1, log.warning)
    trainers = TrainerFleet(workers, names, parts.recipe, parts.watch)
    if parts.placement.is_shared:
        cfg = parts.recipe.cfg
        has_weights = cfg.engine.rollout_engine == "sglang" or not trainers.lends
        make_room(cfg, known, trainers, trainers.rooms, device, has_weights=has_weights)
    return trainers


def build_sync(trainers: TrainerFleet | None, engines: EngineFleet | None, dtype: str) -> Sync:
    """What publishes weights, where there are two sides to it."""
    if trainers is None or engines is None:
        return SharedSync([], dtype=dtype)
    return FleetSync(engines, dtype=dtype)


def build_devices(
    parts: Parts, trainers: TrainerFleet | None, engines: EngineFleet | None, device: str
) -> Devices:
    """Whose turn it is on shared devices."""
    if engines is None:
        return Devices()
    if parts.recipe.cfg.sync.asynchronous == "full":
        return Devices(sampling=partial(afresh, engines), publishing=engines.paused)
    if trainers is None or not parts.placement.is_shared:
        return Devices(sampling=partial(afresh, engines))
    return Turns(
        trainers,
        engines,
        log.info,
        measure=engines.memories,
        least=trainers.least_memories,
        caches_sleep=bool(parts.recipe.cfg.cluster.offload_rollout) and device == "cuda",
        moves_state=trainers.is_asleep,
    ).devices()
