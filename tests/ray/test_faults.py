"""Processes that are killed or stand still, on a run of two ranks and two engines."""

import logging
import os
import signal
import threading
import time
from contextlib import ExitStack

import pytest
import ray
import torch

from tandem.config import load_config
from tandem.errors import ResourceError
from tandem.loop import learn
from tandem.observe import Timers
from tandem.rollout import EventLoop
from tandem.runtime.ray.build import build

pytestmark = pytest.mark.usefixtures("cluster")
PATIENCE_S = 120  # for what must happen at some time; a quiet machine needs seconds
WORDS = """--actor-num-gpus-per-node 2 --rollout-num-gpus 2 --heartbeat-timeout 2
    --rollout-max-response-len 40"""


class Said(logging.Handler):
    """What the log said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def wait_for(self, *words):
        """The first line that holds all of the words."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            for line in list(self.lines):
                if all(word in line for word in words):
                    return line
            time.sleep(0.1)
        raise AssertionError(f"nobody said {words}: {self.lines}")


@pytest.fixture(scope="module")
def running(tiny, tmp_path_factory):
    """The stages of a run whose engines have their first weights, and what its log says."""
    torch.set_num_threads(1)
    said = Said()
    with ExitStack() as stack:
        events = EventLoop()
        stack.callback(events.close)
        cfg = load_config(tiny.argv(tmp_path_factory.mktemp("run"), WORDS))
        stages, cfg = build(cfg, events, stack)
        logging.getLogger("tandem").addHandler(said)
        stages.sync.publish(stages.trainer.weights(0))
        yield cfg, stages, said
        logging.getLogger("tandem").removeHandler(said)


def pid_of(handle):
    return ray.get(handle.where.remote()).pid


def tokens_of(rollout):
    return [
        (sample.index, sample.tokens_T.tolist())
        for group in rollout.groups
        for sample in group.samples
    ]


def test_an_engine_killed_while_it_samples_loses_and_doubles_nothing(running):
    _, stages, said = running
    line = stages.sync.engines.lines[0]
    state = stages.sampler.state()
    wanted = tokens_of(stages.sampler.collect(0))
    stages.sampler.restore(state)
    stages.sync.engines.forget()
    pid = pid_of(line.handle)

    def kill():
        while not line.num_asked:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert tokens_of(stages.sampler.collect(0)) == wanted
    killer.join()
    said.wait_for("engine 0", f"pid {pid}", "died", "another is started")
    assert {one.version for one in stages.sync.engines.all_stats()} == {0}
    assert stages.sync.engines.state_digest(as_stored=True)  # raises if two engines differ
    assert pid_of(line.handle) != pid


def test_an_engine_killed_in_a_weight_update_has_the_new_weights(running):
    cfg, stages, _ = running
    first, second = (line.handle for line in stages.sync.engines.lines)
    rollout = stages.sampler.collect(0)
    learn(cfg, stages, rollout.groups, Timers())
    weights, pid = stages.trainer.weights(1), pid_of(second)
    os.kill(pid, signal.SIGSTOP)  # so that the others wait for it in the middle

    def kill():
        while ray.get(first.pulse.remote()).span != "update weights":
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    stages.sync.publish(weights)  # raises unless every engine shows these weights
    killer.join()
    assert [one.version for one in stages.sync.engines.all_stats()] == [1, 1]


def test_an_engine_killed_in_its_sleep_wakes_with_the_weights(running):
    _, stages, _ = running
    engines = stages.sync.engines
    engines.sleep()
    os.kill(pid_of(engines.lines[0].handle), signal.SIGKILL)
    engines.wake()
    assert not any(one.is_asleep for one in engines.all_stats())
    assert engines.state_digest(as_stored=True)
    assert [one.version for one in engines.all_stats()] == [1, 1]


def test_who_stands_still_is_named_with_what_it_waits_for(running):
    cfg, stages, said = running
    rollout = stages.sampler.collect(1)
    stopped = pid_of(stages.trainer.workers[1])
    os.kill(stopped, signal.SIGSTOP)
    learning = threading.Thread(target=learn, args=(cfg, stages, rollout.groups, Timers()))
    learning.start()
    said.wait_for("trainer rank 1 on ", f"pid {stopped}", "has not answered for")
    line = said.wait_for("trainer rank 0 on ", "has not moved for", "collectives.py")
    os.kill(stopped, signal.SIGCONT)
    learning.join()  # nothing was lost: it goes on
    stacks = line.rpartition(" ")[2]
    with open(stacks, encoding="utf-8") as file:
        assert "==== trainer rank 0" in file.read()


def test_a_rank_that_is_killed_ends_the_run_and_is_named(running):
    cfg, stages, _ = running
    rollout = stages.sampler.collect(2)
    worker = stages.trainer.workers[1]
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=rf"trainer rank 1 on .* pid {pid} died in") as raised:
        learn(cfg, stages, rollout.groups, Timers())
    assert "--load" in str(raised.value)
