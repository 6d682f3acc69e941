"""The Ray cluster as a run needs it: joined or started, and devices of it in a stable order."""

import ipaddress
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from tandem.errors import ResourceError
from tandem.observe import get_logger

log = get_logger("run")

FREE_WAIT_S = 10.0
"""How long devices that another run is giving back are waited for."""

FREE_LOOK_S = 0.1
"""Between two looks at them."""

PLACE_WAIT_S = 30.0
"""How long the cluster may take to set devices aside that are free."""

ANSWER_WAIT_S = 10.0
"""How long the head of a cluster may take to answer a call."""

START_WAIT_S = 120.0
"""How long a process may take to start: it imports torch, from a network's disk perhaps."""

ADDRESS = "RAY_ADDRESS"
"""The environment variable that names a running cluster; `ray job submit` sets it."""


ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no report to Ray's makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # nor a warning about what a driver sees of GPUs
    "RAY_worker_niceness": "0",  # Ray's 15 lets anything else on the host go before training
}
"""What Ray is started with, unless the environment says otherwise."""

OWN_GCS_WAIT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", "15"
"""How long processes of a cluster that a run starts look for its head, which ended with the run:
for Ray's minute they would stay behind a driver that was killed."""


@contextmanager
def joined(num_devices: int, device: str) -> Iterator[bool]:
    """Whether devices are GPUs, within a connection to the cluster.

    That is the one that this process has joined already, that of RAY_ADDRESS, or else one that is
    started on this host and ends with the block; it counts a CPU for each device at least, so that
    processes may share cores.
    """
    if ray.is_initialized():
        yield _has_gpu(device)
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get(ADDRESS) or "local"
    options: dict[str, Any] = {"address": address, "logging_level": logging.WARNING}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault(*OWN_GCS_WAIT_S)
        options["num_cpus"] = max(num_devices, os.cpu_count() or 1)
    log.info("Ray starts on this host" if address == "local" else f"joining Ray at {address}")
    check_answers(address)
    ours = signal.getsignal(signal.SIGTERM)
    try:
        with _another_group():
            context: Any = ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(f"{ADDRESS}={address}: {error}") from error
    if signal.getsignal(signal.SIGTERM) is not ours:
        signal.signal(signal.SIGTERM, ours)  # Ray's ends the process; a run saves first
    try:
        yield _has_gpu(device)
    finally:
        ray.shutdown()
    if address == "local":  # what ended early leaves its logs
        shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


@contextmanager
def _another_group() -> Iterator[None]:
    """Processes that are started within are in a process group of their own.

    `timeout`, schedulers and service managers send SIGTERM to a whole group. Ray's processes would
    be gone before the run has saved; so it reaches the run alone, which ends them. A process cannot
    make a group for others, so it is that of a program which waits, where this one is a moment too.
    """
    ours, waits = os.getpgrp(), f"import time; time.sleep({START_WAIT_S})"
    with subprocess.Popen([sys.executable, "-S", "-c", waits], process_group=0) as holder:
        try:
            os.setpgid(0, holder.pid)
        except PermissionError:  # the first process of a session must stay in its group
            holder.kill()
            yield
            return
        try:
            yield
        finally:
            os.setpgid(0, ours)
            holder.kill()


def check_answers(address: str) -> None:
    """Passes if somebody listens at host:port; Ray itself would try for minutes.

    `auto` is where a cluster was last started on this host, which Ray has written down; it may be
    gone. Where nothing is written, Ray looks for one itself.
    """
    where = address
    if address == "auto" and (note := _last_started()).is_file():
        where = note.read_text().strip()
        address = f"auto, by {note} {where}"
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if "://" in where.removeprefix("ray://") or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_WAIT_S).close()
    except OSError as error:
        raise ResourceError(
            f"nobody answers at {ADDRESS}={address} ({error}); start a cluster there (ray start "
            f"--head), or unset {ADDRESS} to use the devices of this host alone"
        ) from error


def _last_started() -> Path:
    """Where Ray notes the address of the cluster that was started last."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(temporary, "ray", "ray_current_cluster")


def _has_gpu(device: str) -> bool:
    if device == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return device == "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved:
    """Devices that are set aside for this run, each a bundle of the placement group."""

    group: PlacementGroup
    bundle: dict[str, float]
    bundles: tuple[int, ...]  # in the stable order


@contextmanager
def reserved(count: int, wish: str, *, is_gpu: bool) -> Iterator[Reserved]:
    """`count` devices, given back at the end; ResourceError in seconds if they cannot be had.

    `wish` says in words of the flags what they are for.
    """
    bundle = {"GPU": 1.0, "CPU": 1.0} if is_gpu else {"CPU": 1.0}
    _check(count, bundle, wish)
    group = placement_group([bundle] * count, strategy="PACK")
    try:
        if not group.wait(PLACE_WAIT_S):  # Ray's `ready` would start a process to say so
            raise ResourceError(
                f"the cluster could not set aside {wish} within {PLACE_WAIT_S:.0f} s; it has "
                f"{_listing(bundle)}, but not one CPU beside each GPU, or they went to another run"
            )
        yield Reserved(group=group, bundle=bundle, bundles=_in_order(group, count, is_gpu))
    finally:
        remove_placement_group(group)


def _check(count: int, bundle: dict[str, float], wish: str) -> None:
    """Passes if the cluster has the devices and they are free, now or soon."""
    kind = "GPU" if "GPU" in bundle else "CPU"
    total = int(ray.cluster_resources().get(kind, 0))
    if total < count:
        cpu = ", or set --device cpu" if kind == "GPU" and not total else ""
        raise ResourceError(
            f"this run asks for {wish}; the cluster has {_listing(bundle)}. Lower the number of "
            f"devices (--colocate shares them), or join more hosts with ray start and set "
            f"{ADDRESS}=auto{cpu}"
        )
    deadline_s = time.monotonic() + FREE_WAIT_S
    while (free := int(ray.available_resources().get(kind, 0))) < count:
        if time.monotonic() > deadline_s:
            raise ResourceError(
                f"this run asks for {wish}; the cluster has {_listing(bundle)}, and {free} are "
                "free. Wait for the run that holds the others, or end it"
            )
        time.sleep(FREE_LOOK_S)


def _listing(bundle: dict[str, float]) -> str:
    """The cluster's devices in words: `3 GPUs on 2 hosts (10.0.0.1: 2, 10.0.0.2: 1)`."""
    kind = "GPU" if "GPU" in bundle else "CPU"
    counts: Counter[str] = Counter()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        counts[node["NodeManagerAddress"]] += int(node["Resources"].get(kind, 0))
    hosts = ", ".join(f"{host}: {count}" for host, count in sorted(counts.items()))
    total, num_hosts = sum(counts.values()), len(nodes)
    return f"{total} {kind}s on {num_hosts} host{'s' * (num_hosts != 1)} ({hosts})"


def _in_order(group: PlacementGroup, count: int, is_gpu: bool) -> tuple[int, ...]:
    """The bundles by host address, then node, then device: the same order at every start."""
    hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    nodes = placement_group_table(group)["bundles_to_node_id"]
    numbers = _gpu_numbers(group, count) if is_gpu else [[]] * count

    def order(place: int) -> tuple[Any, ...]:
        host = ipaddress.ip_address(hosts[nodes[place]])
        return host.version, int(host), nodes[place], numbers[place], place

    return tuple(sorted(range(count), key=order))


def _gpu_numbers(group: PlacementGroup, count: int) -> list[list[int]]:
    """Which GPUs of its node each bundle has, which only a process in the bundle can say.

    Raises ResourceError where none starts.
    """

    def seen() -> list[int]:
        # sent as it is here: a function by name would have every process import all of tandem
        return [int(one) for one in ray.get_runtime_context().get_accelerator_ids()["GPU"]]

    probe = ray.remote(num_cpus=1, num_gpus=1)(seen).options
    refs = [probe(**in_bundle(group, place)).remote() for place in range(count)]
    try:
        return ray.get(refs, timeout=START_WAIT_S)
    except GetTimeoutError as error:
        raise ResourceError(
            f"the cluster set {count} devices aside, but did not start a process on each within "
            f"{START_WAIT_S:.0f} s; Ray's logs on those hosts say why"
        ) from error


def in_bundle(group: PlacementGroup, bundle: int) -> dict[str, Any]:
    """Options that start something in one bundle of a placement group."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=bundle
    )
    return {"scheduling_strategy": strategy}


def warn_of_split_hosts(hosts: Sequence[str], per_host: int, say: Callable[[str], None]) -> None:
    """Says so if the ranks that the flags put on one host are on several."""
    for first in range(0, len(hosts), per_host):
        there = sorted(set(hosts[first : first + per_host]))
        if len(there) > 1:
            say(
                f"ranks {first} to {first + per_host - 1} are on {len(there)} hosts "
                f"({', '.join(there)}): what they say to each other goes over the network"
            )
