"""A run on a cluster of two nodes, both on this host, and one that asks for too much.

    python tests/ray/two_nodes.py FLAGS...

The last line of standard output is JSON: the node of each device in order, what the second run was
told, and after how many seconds.
"""

import json
import os
import sys
import time

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from tandem.config import load_config
from tandem.errors import ResourceError
from tandem.runtime import run
from tandem.runtime.ray.cluster import ADDRESS, joined, reserved


def main(argv):
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=2)
    os.environ[ADDRESS] = cluster.address
    run(load_config(argv))
    with joined(4, "cpu"), reserved(4, "four devices", is_gpu=False) as devices:
        nodes = placement_group_table(devices.group)["bundles_to_node_id"]
        order = [nodes[bundle] for bundle in devices.bundles]
    begin_s = time.monotonic()
    told = ""
    try:
        run(load_config([*argv, "--rollout-num-gpus", "4"]))
    except ResourceError as error:
        told = str(error)
    answer = {
        "nodes": [sorted(set(order)).index(node) for node in order],
        "too few": told,
        "seconds": time.monotonic() - begin_s,
    }
    assert not ray.is_initialized()
    cluster.shutdown()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
