"""The same run on several layouts of processes: the samples and losses of one process."""

import json
import logging
import os
import re
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
import ray
import torch

from tandem.config import load_config
from tandem.errors import ResourceError
from tandem.loop import train
from tandem.rollout import EventLoop
from tandem.runtime.ray.build import build
from tandem.types import Digests

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def one_process(rows_of):
    return rows_of("--runtime local")


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("perf/")}


def flat(row):
    """Every number of a row, those of single optimizer steps too."""
    found = {name: value for name, value in row.items() if isinstance(value, int | float)}
    for place, step in enumerate(row.get("train_steps", ())):
        found |= {f"{place}/{name}": value for name, value in step.items()}
    return found


def test_a_rank_and_an_engine_apart_give_the_bits_of_one_process(rows_of, one_process):
    rows = rows_of("--actor-num-gpus-per-node 1 --rollout-num-gpus 1")
    assert [without_times(row) for row in rows] == [without_times(row) for row in one_process]


@pytest.mark.parametrize(
    "words",
    [
        "--actor-num-gpus-per-node 2 --tensor-model-parallel-size 2 --sequence-parallel "
        "--rollout-num-gpus 2 --rollout-num-gpus-per-engine 2",
        "--actor-num-gpus-per-node 2 --colocate --offload-train --rollout-num-gpus-per-engine 2",
        "--actor-num-gpus-per-node 2 --colocate --pipeline-model-parallel-size 2",
    ],
)
def test_several_ranks_and_engines_of_several_processes_give_the_numbers_of_one(
    words, rows_of, one_process
):
    check_near(rows_of(words), one_process)


def test_an_engine_upon_the_ranks_parts_gives_these_numbers_and_shows_what_it_reads(
    one_process, tiny, tmp_path, caplog
):
    words = """--actor-num-gpus-per-node 2 --colocate --tensor-model-parallel-size 2
        --sequence-parallel --rollout-num-gpus-per-engine 2"""
    with ExitStack() as stack:
        events = EventLoop()
        stack.callback(events.close)
        stages, cfg = build(load_config(tiny.argv(tmp_path, words)), events, stack)
        train(cfg, stages)
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
        check_near(rows, one_process)

        weights = stages.trainer.weights(2)
        weights = replace(weights, digests=Digests(unread))
        logging.getLogger("tandem").addHandler(caplog.handler)
        stack.callback(logging.getLogger("tandem").removeHandler, caplog.handler)

        def tear(worker, by):
            """The engine's rank in this process has a tensor of its own from now on."""
            layer = worker._engine._engine._decoder.layers[1]
            layer.down.weight = torch.nn.Parameter(layer.down.weight.detach().clone())
            layer.down.weight.data[0, 0] += by

        for by, is_missed in ((None, False), (0, False), (1, True)):
            if by is not None:
                ray.get(stages.trainer.workers[1].__ray_call__.remote(tear, by))
            stages.sync.publish(weights)
            assert ("missed" in caplog.text) == is_missed
        said = r"trainer rank 0 missed .*bytes in 1 of \d+ tensors, first layers.1.down.weight of "
        assert re.search(said + "rank 1", caplog.text)


def unread():
    raise AssertionError("all weights were gathered")


def test_a_run_on_two_shared_devices_that_lost_a_rank_goes_on_apart(rows_of, tmp_path, caplog):
    logging.getLogger("tandem.run").addHandler(caplog.handler)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    killed = []

    def kill():
        while not tracker.exists():
            time.sleep(0.01)
        pid = re.search(r"trainer rank 1 on .* pid (\d+)", caplog.text)[1]
        os.kill(int(pid), signal.SIGKILL)
        killed.append((pid, time.monotonic()))

    threading.Thread(target=kill, daemon=True).start()
    first = f"--save {tmp_path} --save-interval 1 --actor-num-gpus-per-node 2 --colocate"
    with pytest.raises(ResourceError, match=r"trainer rank 1 on .*died.*--load") as raised:
        rows_of(first, num_rollout=1000)
    pid, killed_s = killed[0]
    assert time.monotonic() - killed_s < 60
    assert f"pid {pid}" in str(raised.value)
    logging.getLogger("tandem.run").removeHandler(caplog.handler)

    saved = int(tracker.read_text())
    then = f"--load {tmp_path} --actor-num-gpus-per-node 1 --rollout-num-gpus 1"
    rows = rows_of(then, num_rollout=saved + 2)
    wanted = rows_of("--runtime local", num_rollout=saved + 2)
    check_near(rows, wanted[saved + 1 :])


def check_near(rows, wanted_rows):
    """Passes if every number is that of the other run, but for rounding."""
    for row, wanted in zip(rows, wanted_rows, strict=True):
        numbers, expected = flat(without_times(row)), flat(without_times(wanted))
        assert set(numbers) == set(expected)
        for name, value in expected.items():
            # a difference of log-probs that should be 0 is rounding, in one process as in several
            assert numbers[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
