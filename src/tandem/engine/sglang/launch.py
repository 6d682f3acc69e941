"""From settings to an engine: servers started or found, a router, and what carries weights."""

import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tandem.config import Config
from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.flags import (
    ServerPlan,
    find_package,
    graph_flags,
    installed_flags,
)
from tandem.engine.sglang.fleet import Carrier, Fleet, Health
from tandem.engine.sglang.line import Line
from tandem.engine.sglang.members import Member, Runs
from tandem.engine.sglang.process import LoggedProcess, Spanning
from tandem.engine.sglang.router import DEFAULTS, StockRouter, start_router
from tandem.engine.sglang.server import Server
from tandem.engine.sglang.weights import FolderCarrier, GroupCarrier, HandleCarrier
from tandem.errors import EngineError

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """Where one process of an engine runs."""

    first_gpu: int = 0  # among those that it sees
    visible: tuple[str, ...] = ()  # the devices that it sees, by the host's own ids; () for all
    node: str = ""  # the host as a cluster names it; "" for this one
    host: str = LOOPBACK[0]  # its address


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where servers run and what they compute in."""

    dtype: str  # as torch spells it
    is_cpu: bool
    engines: tuple[tuple[Spot, ...], ...]  # the processes of each, one a host
    shares_device: bool  # with the trainer
    largest_batch: int  # requests that an engine has at work at once


Hosting = Callable[[Spot, LoggedProcess], Runs]
"""Has a process run at a spot."""
Brings = Callable[[Sequence[Member]], Carrier]


def here(spot: Spot, process: LoggedProcess) -> Runs:
    """The process itself: every spot is on this host."""
    return process


def launch(
    cfg: Config, place: Place, brings: Brings | None = None, hosting: Hosting = here
) -> SglangEngine:
    """An engine whose servers are starting; `engine.fleet.until_up()` waits for them.

    `brings(members)` gives what carries weights; this process does when unset. Flags are those
    that `check_servers` passed.
    """
    with ExitStack() as stack:
        line = Line()
        stack.callback(line.close)
        members = _found(cfg, line) if cfg.rollout.rollout_external_engine_addrs else []
        is_ours = not members
        for number, plan in enumerate(_plans(cfg, place) if is_ours else ()):
            process = _process(cfg, number, plan, place, hosting)
            stack.callback(process.kill)
            process.start()
            name = f"SGLang server {number}"
            server = Server(line, process.url, name=name, num_ranks=plan.num_ranks)
            members.append(Member(server, process))
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


def python_of(cfg: Config) -> str:
    """The interpreter that runs servers and router."""
    return cfg.engine.sglang_python or sys.executable


def _plans(cfg: Config, place: Place) -> list[ServerPlan]:
    """The first process of each engine."""
    python, flags = python_of(cfg), dict(cfg.passthrough.sglang)
    known = None if place.is_cpu else installed_flags(python)
    if known is not None:
        flags |= graph_flags(flags, known, place.largest_batch)
    assert cfg.model.hf_checkpoint, "rules see to it"
    per_engine = cfg.cluster.rollout_num_gpus_per_engine
    return [
        ServerPlan(
            python=python,
            model=cfg.model.hf_checkpoint,
            dtype=place.dtype,
            seed=cfg.data.rollout_seed + number,
            first_gpu=spots[0].first_gpu,
            num_gpus=len(spots) if place.is_cpu else per_engine,
            is_cpu=place.is_cpu,
            gives_memory_back=gives_memory_back(cfg, place),
            is_deterministic=cfg.engine.deterministic_mode,
            flags=flags,
            host=spots[0].host,
            num_nodes=len(spots),
        )
        for number, spots in enumerate(place.engines)
    ]


def _process(cfg: Config, number: int, plan: ServerPlan, place: Place, hosting: Hosting) -> Runs:
    """What runs an engine: a process, or one on each host that it spans."""
    assert cfg.observe.run_dir, "resolve names a run folder"
    logs, spots = Path(cfg.observe.run_dir).absolute() / "logs", place.engines[number]

    def hosted(node: int, head: str | None) -> Runs:
        spot = spots[node]
        told = replace(plan, node=node, head=head, first_gpu=spot.first_gpu, host=spot.host)
        process = LoggedProcess(
            f"SGLang server {number}" + (f" (its part {node}, on {spot.host})" if node else ""),
            told.words,
            logs / (f"sglang_{number}" + (f"_{node}" if node else "") + ".log"),
            environment=_environment(place, spot),
            host=spot.host,
        )
        return hosting(spot, process)

    if len(spots) == 1:
        return hosted(0, None)
    rest = range(1, len(spots))
    return Spanning(hosted(0, None), lambda head: [hosted(node, head) for node in rest])


def _environment(place: Place, spot: Spot) -> dict[str, str]:
    """What servers find in their environment besides the run's own."""
    if place.is_cpu:
        has_far_peers = spot.host not in LOOPBACK
        ways = {} if has_far_peers else {"GLOO_SOCKET_IFNAME": "lo"}
        return {"SGLANG_USE_CPU_ENGINE": "1", **ways}
    # both sides of an NCCL group must agree on it
    environment = {"NCCL_CUMEM_ENABLE": "0"}
    if place.shares_device:
        # what the ranks leave free differs from device to device; the least of it counts
        environment["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] = "false"
    if spot.visible:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(spot.visible)
    return environment


def _found(cfg: Config, line: Line) -> list[Member]:
    """Servers that somebody else started; raises EngineError for one that does not answer."""
    members = []
    for address in cfg.rollout.rollout_external_engine_addrs:
        url = address if "://" in address else f"http://{address}"
        server = Server(line, url, name=f"server {address}")
        try:
            info: Any = line.run(server.get("/server_info"))
        except EngineError as error:
            raise EngineError(
                f"--rollout-external-engine-addrs {address} is no SGLang server that answers: "
                f"{error}"
            ) from error
        server.num_ranks = int(info.get("tp_size") or 1)
        members.append(Member(server, None))
    return members


def _router(cfg: Config, num_servers: int) -> StockRouter | None:
    """The router that was named, or one started where it is installed and there is a choice."""
    engine, flags = cfg.engine, cfg.passthrough.router
    policy = flags.get("policy", DEFAULTS["policy"])[0]
    if engine.sglang_router_ip is not None:
        url = f"http://{engine.sglang_router_ip}:{engine.sglang_router_port}"
        for name in flags.keys() - {"policy"}:
            log.warning("--router-%s has no effect on a router that runs already", name)
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
