"""SGLang servers beside the ranks of a trainer: on the hosts whose devices were set aside for them,
fed by the ranks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import ray

from tandem.config import Config
from tandem.engine.sglang.launch import LOOPBACK, Place, Spot
from tandem.engine.sglang.server import Address, Server
from tandem.errors import ConfigError
from tandem.rollout import EvaluationSet
from tandem.runtime.building import Halves
from tandem.runtime.ray.cluster import Reserved, in_bundle
from tandem.runtime.ray.far import Hosts
from tandem.runtime.ray.placement import Placement
from tandem.runtime.ray.trainers import TrainerFleet
from tandem.runtime.servers import (
    build_server_sync,
    largest_batch,
    server_devices,
    with_servers,
)
from tandem.types import Weights


@dataclass(frozen=True, slots=True)
class Device:
    """Where a device of the run is."""

    node: str
    host: str  # the address of the node
    number: str  # as its host counts; "" for a share of a CPU


class RankCarrier:
    """Has ranks send the weights, of which all give their parts: the first one, or where servers
    read them from devices that they share with ranks, the first one of each host."""

    def __init__(self, place: Place, senders: Mapping[str, int]) -> None:
        """`senders`: the rank that sends to the servers of a node, if it is not the first."""
        self.trainers: TrainerFleet | None = None  # servers are there before it
        self._place, self._senders = place, senders

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError."""
        assert self.trainers is not None, "weights before there is a trainer"
        nodes = {f"SGLang server {n}": spots[0].node for n, spots in enumerate(self._place.engines)}
        shares: dict[int, list[Address]] = {}
        for server in servers:
            rank = self._senders.get(nodes.get(server.name, ""), 0)
            shares.setdefault(rank, []).append(server.address)
        self.trainers.send(shares, weights.version, self._place)

    def close(self) -> None:
        """The ranks end with their processes."""


def beside_servers(
    cfg: Config,
    placement: Placement,
    devices: Reserved,
    dtype: str,
    held_out: Sequence[EvaluationSet],
    build_trainers: Callable[[], TrainerFleet],
    stack: ExitStack,
) -> Halves:
    """The ranks, and servers that sample."""
    seen = look_at(placement, devices)  # before ranks hold them
    is_cpu = "GPU" not in devices.bundle
    driver = ray.get_runtime_context().get_node_id()
    place = Place(
        dtype=dtype,
        is_cpu=is_cpu,
        engines=spots_of(placement, seen, driver),
        shares_device=placement.is_shared or cfg.cluster.colocate,
        largest_batch=largest_batch(cfg, held_out),
    )
    carrier = RankCarrier(place, senders_of(placement, seen) if place.shares_device else {})
    hosts = Hosts(driver)
    stack.callback(hosts.close)
    trainers, engine = with_servers(
        cfg, place, stack, build_trainers, lambda members: carrier, hosts.process
    )
    carrier.trainers = trainers
    return Halves(
        trainer=trainers,
        layout=trainers.layout,
        engine=engine,
        holds=None,
        sync=build_server_sync(cfg, engine, trainers, place.dtype),
        devices=server_devices(engine, place, trainers),
        dtype=place.dtype,
    )


def look_at(placement: Placement, devices: Reserved) -> dict[int, Device]:
    """Where the devices of servers are, and that of the first rank."""
    chosen = sorted({0, *(device for engine in placement.engines for device in engine)})
    probe = partial(ray.remote(_seen).options, num_cpus=1, num_gpus=int("GPU" in devices.bundle))
    refs = [
        probe(**in_bundle(devices.group, devices.bundles[device])).remote() for device in chosen
    ]
    return dict(zip(chosen, ray.get(refs), strict=True))


def spots_of(
    placement: Placement, seen: Mapping[int, Device], driver: str
) -> tuple[tuple[Spot, ...], ...]:
    """The processes of every engine, one on each host that it covers; raises ConfigError.

    A process sees every device there that servers have: it may read a buffer that lies on another.
    """
    chosen = [device for engine in placement.engines for device in engine]
    is_near = all(one.node == driver for one in seen.values())
    engines = []
    for engine in placement.engines:
        parts: dict[str, list[int]] = {}
        for device in engine:
            parts.setdefault(seen[device].node, []).append(device)
        _check_span(engine, list(parts.values()), placement)
        spots = []
        for node, part in parts.items():
            there = [device for device in chosen if seen[device].node == node]
            numbers = tuple(seen[device].number for device in there)
            spots.append(
                Spot(
                    first_gpu=there.index(part[0]),
                    visible=numbers if all(numbers) else (),
                    node=node,
                    host=LOOPBACK[0] if is_near else seen[part[0]].host,
                )
            )
        engines.append(tuple(spots))
    return tuple(engines)


def _check_span(engine: range, parts: Sequence[Sequence[int]], placement: Placement) -> None:
    """Passes if the devices lie on hosts as a server can use them."""
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"--rollout-num-gpus-per-engine {len(engine)}: the devices of an engine would lie on "
            f"{len(counts)} hosts, {' + '.join(map(str, counts))}, and SGLang wants as many on "
            f"each; set a number that divides the devices of a host"
        )
    if len(parts) > 1 and placement.is_shared:
        raise ConfigError(
            f"--rollout-num-gpus-per-engine {len(engine)} with --colocate: an engine would span "
            f"{len(parts)} hosts, and weights are read where they lie; set at most {counts[0]}, "
            "or give the engines devices of their own"
        )


def senders_of(placement: Placement, seen: Mapping[int, Device]) -> dict[str, int]:
    """For each node, the first rank whose device servers share there."""
    senders: dict[str, int] = {}
    for device, where in seen.items():
        if device < placement.num_trainers:
            senders.setdefault(where.node, device)
    return senders


def rank_environment(cfg: Config) -> dict[str, str]:
    """The environment of processes that train; the user's own wins."""
    if cfg.engine.rollout_engine != "sglang":
        return dict(cfg.cluster.train_env_vars)
    # read once by NCCL, and both sides of a group must agree on it: SGLang sets 0
    return {"NCCL_CUMEM_ENABLE": "0", **cfg.cluster.train_env_vars}


def _seen() -> Device:
    """The device of the bundle that this runs in."""
    context = ray.get_runtime_context()
    numbers = context.get_accelerator_ids().get("GPU", [])
    return Device(
        node=context.get_node_id(),
        host=ray.util.get_node_ip_address(),
        number=str(numbers[0]) if numbers else "",
    )
