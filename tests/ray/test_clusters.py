"""Runs on clusters that were started before them: of two nodes, and through submitted jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tandem.runtime.ray.cluster import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
NODES = Path(__file__).with_name("two_nodes.py")
SUBMITS = Path(__file__).with_name("submits.py")


def test_ranks_engines_and_servers_on_two_nodes_and_too_few_of_them(tiny, tmp_path):
    def on_two_nodes(words):
        argv = tiny.argv(tmp_path, words, num_rollout=1)
        command = [sys.executable, str(NODES), *argv]
        env = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)

    done = on_two_nodes("--actor-num-nodes 2 --actor-num-gpus-per-node 1 --rollout-num-gpus 2")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    # the first node's devices come first: a rank and a rank, then the engines
    assert told["nodes"] == told["nodes of GPUs"] == [0, 0, 1, 1]
    # an engine of the far node, and one whose devices lie on both; each was killed and came back
    assert told["servers"]["near"] == [[False], [False, True]]
    assert told["servers"]["logs"] == ["sglang_0.log", "sglang_1.log", "sglang_1_1.log"]
    assert told["servers"]["restarts"] == [1, 1]
    assert told["too few"].startswith("this run asks for 6 devices: 2 that train")
    assert "the cluster has 4 CPUs on 2 hosts" in told["too few"]
    assert told["seconds"] < 10
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


def test_a_run_is_submitted_as_a_job_to_a_cluster_that_asks_for_a_token(tiny, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-this-test-and-of-nothing-else-0123456789")
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1"}
    words = "--actor-num-gpus-per-node 1 --rollout-num-gpus 1 --progress plain"
    argv = tiny.argv(tmp_path / "run", words)
    done = subprocess.run(
        [sys.executable, str(SUBMITS), *argv],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | asked,
        text=True,
        capture_output=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "step 0/2 | reward" in said and "step 1/2 | reward" in said
    assert (tmp_path / "run/report.md").is_file()
