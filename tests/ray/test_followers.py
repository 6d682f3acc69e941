"""An engine over two processes of which one is killed or hangs, beside one in the ranks' own."""

import logging
import os
import re
import signal
import threading
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
WORDS = """--actor-num-gpus-per-node 2 --colocate --rollout-num-gpus 4
    --rollout-num-gpus-per-engine 2 --rollout-max-response-len 40 --use-fault-tolerance
    --rollout-health-check-timeout 5 --rollout-health-check-interval 1"""
FOLLOWER = "engine 1 rank 1"


class Said(logging.Handler):
    """What the log said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def pid_of(self, name):
        """The process that has this name now."""
        found = (re.fullmatch(rf"{name} on .* pid (\d+)", line) for line in self.lines)
        return [int(match[1]) for match in found if match][-1]

    def says(self, pattern):
        return any(re.search(pattern, line) for line in self.lines)


@pytest.fixture(scope="module")
def running(tiny, tmp_path_factory):
    """The stages of a run, whose engines have their first weights, and what its log says."""
    torch.set_num_threads(1)
    said = Said()
    logger = logging.getLogger("tandem")
    with ExitStack() as stack:
        logger.addHandler(said)
        logger.setLevel(logging.INFO)
        stack.callback(logger.removeHandler, said)
        events = EventLoop()
        stack.callback(events.close)
        cfg = load_config(tiny.argv(tmp_path_factory.mktemp("run"), WORDS))
        stages, cfg = build(cfg, events, stack)
        stages.sync.publish(stages.trainer.weights(0))
        yield cfg, stages, said


def sampled(stages, pid=None, number=None):
    """A round, the same at every call, and its tokens; in its middle a process is sent a signal."""
    engines, is_over = stages.sync.engines, threading.Event()
    engines.forget()

    def send():
        while not engines.lines[1].num_asked and not is_over.wait(0.001):
            pass
        os.kill(pid, number)

    sender = threading.Thread(target=send)
    if pid is not None:
        sender.start()
    state = stages.sampler.state()
    rollout = stages.sampler.collect(0)
    stages.sampler.restore(state)
    is_over.set()
    if pid is not None:
        sender.join()
    return rollout, [sample.tokens_T.tolist() for one in rollout.groups for sample in one.samples]


def check_same(engines, version):
    """Passes if all engines hold the same weights, which are of this version."""
    assert [one.version for one in engines.all_stats()] == [version, version]
    assert engines.state_digest()  # raises if two engines differ


def test_an_engine_of_which_one_process_is_killed_gets_weights_that_ranks_have_no_more(running):
    cfg, stages, said = running
    rollout, wanted = sampled(stages)
    learn(cfg, stages, rollout.groups, Timers())
    pid = said.pid_of(FOLLOWER)
    assert sampled(stages, pid, signal.SIGKILL)[1] == wanted
    check_same(stages.sync.engines, 0)
    assert said.says(r"engine 1 on .* died .*; another is started")
    assert said.says("engine 1 is back with weights 0")
    assert said.pid_of(FOLLOWER) != pid


def test_an_engine_of_which_one_process_hangs_is_ended_and_loses_nothing(running):
    _, stages, said = running
    stages.sync.publish(stages.trainer.weights(1))
    _, wanted = sampled(stages)
    pid = said.pid_of(FOLLOWER)
    assert sampled(stages, pid, signal.SIGSTOP)[1] == wanted
    check_same(stages.sync.engines, 1)
    assert said.says(rf"{FOLLOWER} on .* pid {pid} has stood still for .* and is ended")


class Flips:
    """A carrier, and then a weight of an engine's second rank that becomes another one."""

    def __init__(self, carrier, worker):
        self.carrier, self.worker = carrier, worker

    def send(self, lines, version):
        def flip(worker):
            weight = worker._engine.decoder.get_parameter("embed.weight")
            weight.data[0, 0] = -weight.data[0, 0]

        faults = self.carrier.send(lines, version)
        ray.get(self.worker.__ray_call__.remote(flip))
        return faults

    def numbers(self):
        return {}


def test_a_weight_of_one_process_that_went_wrong_is_named_and_mended(running):
    _, stages, said = running
    engines = stages.sync.engines
    carrier = engines._carrier
    engines._carrier = Flips(carrier, stages.trainer.workers[1])
    stages.sync.publish(stages.trainer.weights(1))
    engines._carrier = carrier
    wrong = r"other bytes in 1 of \d+ tensors, first embed.weight"
    assert said.says(rf"trainer rank 0 missed weight update 1 and gets it again: .*{wrong}")
    check_same(engines, 1)


def test_an_engine_of_which_one_process_is_killed_asleep_wakes_with_the_weights(running):
    _, stages, said = running
    engines = stages.sync.engines
    engines.sleep()
    os.kill(said.pid_of(FOLLOWER), signal.SIGKILL)
    engines.wake()
    assert not any(one.is_asleep for one in engines.all_stats())
    check_same(engines, 1)


def test_a_rank_killed_while_its_engine_sleeps_ends_the_run_and_is_named(running):
    _, stages, said = running
    engines = stages.sync.engines
    engines.sleep()
    pid = said.pid_of("trainer rank 1")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=rf"trainer rank 1 on .* pid {pid}"):
        engines.wake()
        engines.state_digest()
