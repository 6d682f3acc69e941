"""A run on a cluster of two nodes, both on this host, and one that asks for too much.

    python tests/ray/two_nodes.py FLAGS...

In between, SGLang servers that only speak as such start on both nodes. The last line of standard
output is JSON: the node of each device in order, what became of the servers, what the second run
was told, and after how many seconds.
"""

import importlib.util
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from tandem.config import load_config
from tandem.engine.sglang.launch import Place
from tandem.errors import EngineError, ResourceError
from tandem.runtime import run
from tandem.runtime.ray.cluster import ADDRESS, joined, reserved
from tandem.runtime.ray.far import Hosts
from tandem.runtime.ray.placement import Placement
from tandem.runtime.ray.servers import look_at, spots_of
from tandem.runtime.servers import with_servers

NODE = {"num_cpus": 2, "num_gpus": 2}  # there are no such GPUs, and nobody looks
FAKE = Path(__file__).parents[1] / "sglang" / "fake.py"


def until(holds, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(0.05)


def serve(argv, devices, folder):
    """Where a server on the far node and one that spans both nodes run, and how they end."""
    spec = importlib.util.spec_from_file_location("sglang_fake", FAKE)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    words = f"--rollout-engine sglang --sglang-python {fake.interpreter(folder)} --colocate"
    cfg = load_config([*argv, *words.split()])
    driver = ray.get_runtime_context().get_node_id()
    for far in (0, 3):  # the nodes come in no order that is known here
        engines = (range(far, far + 1), range(1, 3))
        placement = Placement(num_devices=4, num_trainers=0, engines=engines)
        spots = spots_of(placement, look_at(placement, devices), driver)
        if spots[0][0].node != driver:
            break
    place = Place(dtype="float32", is_cpu=True, engines=spots, shares_device=True, largest_batch=8)
    with ExitStack() as stack:
        hosts = Hosts(driver)
        stack.callback(hosts.close)
        _, engine = with_servers(cfg, place, stack, lambda: None, hosting=hosts.process)
        line = engine.fleet.line
        told = {
            "near": [sorted(spot.node == driver for spot in engine) for engine in spots],
            "restarts": [],
            "logs": sorted(log.name for log in folder.glob("logs/*.log")),
        }
        for member in engine.fleet.members:
            before = member.server.url
            try:
                line.run(member.server.post("/crash", {}))
            except EngineError:  # it is gone in the middle of it
                until(lambda: member.server.url != before and member.is_up)  # noqa: B023
            told["restarts"].append(member.num_restarts)
    return told


def nodes_of(devices):
    """The node of each device, in order."""
    nodes = placement_group_table(devices.group)["bundles_to_node_id"]
    order = [nodes[bundle] for bundle in devices.bundles]
    return [sorted(set(order)).index(node) for node in order]


def main(argv):
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    os.environ[ADDRESS] = cluster.address
    cfg = load_config(argv)
    run(cfg)
    with joined(4, "cpu"):
        with reserved(4, "four GPUs", is_gpu=True) as devices:
            gpu_nodes = nodes_of(devices)
        with reserved(4, "four devices", is_gpu=False) as devices:
            nodes = nodes_of(devices)
            servers = serve(argv, devices, Path(cfg.observe.run_dir))
    begin_s = time.monotonic()
    told = ""
    try:
        run(load_config([*argv, "--rollout-num-gpus", "4"]))
    except ResourceError as error:
        told = str(error)
    answer = {
        "nodes": nodes,
        "nodes of GPUs": gpu_nodes,
        "servers": servers,
        "too few": told,
        "seconds": time.monotonic() - begin_s,
    }
    assert not ray.is_initialized()
    cluster.shutdown()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
