"""From settings to an engine: servers started or found, a router, and what carries weights."""

import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.config import Config
from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.flags import ServerPlan, check_flags, find_package
from tandem.engine.sglang.fleet import Carrier, Fleet, Health
from tandem.engine.sglang.line import Line
from tandem.engine.sglang.members import Member
from tandem.engine.sglang.process import LoggedProcess
from tandem.engine.sglang.router import DEFAULTS, StockRouter, start_router
from tandem.engine.sglang.server import Server
from tandem.engine.sglang.weights import FolderCarrier, GroupCarrier, HandleCarrier

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where servers run and what they compute in."""

    dtype: str  # as torch spells it
    is_cpu: bool
    first_gpu: int  # of this host; an engine takes the next `--rollout-num-gpus-per-engine`
    num_gpus: int  # of all engines
    shares_device: bool  # with the trainer
    visible: tuple[str, ...] = ()  # the devices that servers see, by their own ids; () for all


def launch(
    cfg: Config, place: Place, brings: Callable[[Sequence[Member]], Carrier] | None = None
) -> SglangEngine:
    """An engine whose servers are starting; `engine.fleet.until_up()` waits for them.

    `brings(members)` gives what carries weights; this process does when unset. Raises ConfigError
    for flags that the installed SGLang does not have.
    """
    with ExitStack() as stack:
        line = Line()
        stack.callback(line.close)
        members = _found(cfg, line) if cfg.rollout.rollout_external_engine_addrs else []
        is_ours = not members
        for process in _started(cfg, place) if is_ours else ():
            stack.callback(process.kill)
            process.start()
            members.append(Member(_server(line, process, cfg), process))
        router = _router(cfg, len(members))
        if router is not None:
            stack.callback(router.close)
        fleet = Fleet(
            line,
            members,
            carrier_of(cfg, line, place, members) if brings is None else brings(members),
            router=router,
            health=health_of(cfg),
            can_sleep=is_ours and gives_memory_back(cfg, place),
        )
        stack.pop_all()
    timeout_s = float(cfg.engine.sglang_router_request_timeout_secs)
    return SglangEngine(line, fleet, timeout_s=timeout_s)


def carrier_of(cfg: Config, line: Line, place: Place, members: Sequence[Member]) -> Carrier:
    """What brings weights: a folder, handles where a device is shared, else a process group."""
    sync = cfg.sync
    if sync.update_weight_transport == "disk":
        assert sync.update_weight_disk_dir and cfg.model.hf_checkpoint, "rules want both"
        return FolderCarrier(
            line,
            sync.update_weight_buffer_size,
            Path(sync.update_weight_disk_dir),
            model=Path(cfg.model.hf_checkpoint),
            keeps=sync.update_weight_disk_keep_files,
        )
    if place.shares_device:
        return HandleCarrier(line, sync.update_weight_buffer_size)
    is_here = all(any(name in member.server.url for name in LOOPBACK) for member in members)
    return GroupCarrier(
        line,
        sync.update_weight_buffer_size,
        backend="gloo" if place.is_cpu else "nccl",
        host="127.0.0.1" if is_here else own_address(),
    )


def own_address() -> str:
    """The address of this host on the way out; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation, reached by nobody
        return probe.getsockname()[0]


def health_of(cfg: Config) -> Health | None:
    """How often servers are asked whether they live, with `--use-fault-tolerance`."""
    cluster = cfg.cluster
    if not cluster.use_fault_tolerance:
        return None
    return Health(
        interval_s=cluster.rollout_health_check_interval,
        timeout_s=cluster.rollout_health_check_timeout,
        first_wait_s=cluster.rollout_health_check_first_wait,
    )


def gives_memory_back(cfg: Config, place: Place) -> bool:
    """Whether servers release their memory while the trainer learns."""
    return bool(cfg.cluster.offload_rollout) and not place.is_cpu


def num_engines(cfg: Config, num_gpus: int) -> int:
    """How many engines these devices make."""
    return max(1, num_gpus // cfg.cluster.rollout_num_gpus_per_engine)


def python_of(cfg: Config) -> str:
    """The interpreter that runs servers and router."""
    return cfg.engine.sglang_python or sys.executable


def _started(cfg: Config, place: Place) -> list[LoggedProcess]:
    """The servers of this host, one process each, not yet started."""
    python, flags = python_of(cfg), cfg.passthrough.sglang
    check_flags(python, flags)
    per_engine = cfg.cluster.rollout_num_gpus_per_engine
    assert cfg.model.hf_checkpoint and cfg.observe.run_dir, "rules and resolve see to both"
    processes = []
    for place_of in range(num_engines(cfg, place.num_gpus)):
        plan = ServerPlan(
            python=python,
            model=cfg.model.hf_checkpoint,
            dtype=place.dtype,
            seed=cfg.data.rollout_seed + place_of,
            first_gpu=place.first_gpu + place_of * per_engine,
            num_gpus=1 if place.is_cpu else per_engine,
            is_cpu=place.is_cpu,
            gives_memory_back=gives_memory_back(cfg, place),
            is_deterministic=cfg.engine.deterministic_mode,
            flags=flags,
        )
        processes.append(
            LoggedProcess(
                f"SGLang server {place_of}",
                plan.words,
                Path(cfg.observe.run_dir) / "logs" / f"sglang_{place_of}.log",
                environment=_environment(place),
            )
        )
    return processes


def _environment(place: Place) -> dict[str, str]:
    """What servers find in their environment besides the run's own."""
    if place.is_cpu:
        return {"SGLANG_USE_CPU_ENGINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # both sides of an NCCL group must agree on it
    environment = {"NCCL_CUMEM_ENABLE": "0"}
    if place.visible:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.visible)
    return environment


def _server(line: Line, process: LoggedProcess, cfg: Config) -> Server:
    ranks = cfg.cluster.rollout_num_gpus_per_engine
    return Server(line, process.url, name=process.name, num_ranks=ranks)


def _found(cfg: Config, line: Line) -> list[Member]:
    """Servers that somebody else started; raises EngineError for one that does not answer."""
    members = []
    for address in cfg.rollout.rollout_external_engine_addrs:
        url = address if "://" in address else f"http://{address}"
        server = Server(line, url, name=f"server {address}")
        info: Any = line.run(server.get("/server_info"))
        server.num_ranks = int(info.get("tp_size") or 1)
        members.append(Member(server, None))
    return members


def _router(cfg: Config, num_servers: int) -> StockRouter | None:
    """The router that was named, or one started where it is installed and there is a choice."""
    engine, flags = cfg.engine, cfg.passthrough.router
    policy = flags.get("policy", DEFAULTS["policy"])[0]
    if engine.sglang_router_ip is not None:
        url = f"http://{engine.sglang_router_ip}:{engine.sglang_router_port}"
        return StockRouter(url, policy=policy)
    is_there = find_package("sglang_router", python_of(cfg)) is not None
    if not is_there or (num_servers == 1 and not flags):
        if flags:
            log.warning("--router-* has no effect: sglang-router is not installed")
        return None
    assert cfg.observe.run_dir is not None, "resolve names a run folder"
    return start_router(
        python_of(cfg),
        flags,
        timeout_s=engine.sglang_router_request_timeout_secs,
        log=Path(cfg.observe.run_dir) / "logs" / "sglang_router.log",
    )
