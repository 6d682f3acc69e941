"""Sampling while training, with ranks and engines in processes of their own."""

import json
import os
import signal
import threading
import time
from contextlib import ExitStack

import pytest
import ray
import torch

from tandem.config import load_config
from tandem.loop import learn, train
from tandem.observe import Timers
from tandem.runtime.overlap import event_loop
from tandem.runtime.ray.build import build

pytestmark = pytest.mark.usefixtures("cluster")
APART = "--actor-num-gpus-per-node 1 --rollout-num-gpus 1"
TWO = "--actor-num-gpus-per-node 1 --rollout-num-gpus 2"
ONE_STEP = "--asynchronous one-step"
FULL = "--asynchronous full"
# two groups at work, and answers that last through many weight updates
LONG = f"""{FULL} --sglang-server-concurrency 4 --rollout-max-response-len 60 --use-tis
    --max-tokens-per-gpu 400"""


def without_times(row):
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(("perf/", "rollout/staleness/", "rollout/queue", "rollout/num_gr"))
    }


def test_without_staleness_both_modes_give_the_samples_of_runs_that_take_turns(rows_of, tmp_path):
    found = {}
    for name, words in (
        ("local", "--runtime local"),
        ("turns", APART),
        ("full", f"{APART} {FULL} --max-staleness 0"),
    ):
        dump = f"--save-debug-rollout-data {tmp_path}/{name}/{{rollout_id}}.pt"
        rows = rows_of(f"{words} {dump}")
        dumps = [torch.load(tmp_path / f"{name}/{step}.pt", weights_only=True) for step in (0, 1)]
        samples = [
            [(s["tokens"], s["rollout_log_probs"], s["weight_versions"]) for s in dump["samples"]]
            for dump in dumps
        ]
        found[name] = samples, [without_times(row) for row in rows]
    assert found["full"] == found["turns"] == found["local"]


def test_one_step_off_gives_the_bits_of_one_process(rows_of, tmp_path):
    alone = rows_of(f"--runtime local {ONE_STEP}", num_rollout=3)
    apart = rows_of(f"{APART} {ONE_STEP} --auto-split", num_rollout=3, folder=tmp_path)
    assert [without_times(row) for row in apart] == [without_times(row) for row in alone]
    assert [row["rollout/staleness/max"] for row in apart] == [0, 1, 1]
    notes = [json.loads(line)["text"] for line in (tmp_path / "notes.jsonl").open()]
    assert any("nothing corrects for it" in note and "--use-tis" in note for note in notes)
    assert notes[-1].startswith("measured: sampling ") and "2 devices: 1 to sample" in notes[-1]


@pytest.fixture
def stages_of(tiny, tmp_path):
    """The stages of a run in `tmp_path`, and its configuration."""
    torch.set_num_threads(1)
    with ExitStack() as stack:

        def stages(words, num_rollout):
            cfg = load_config(tiny.argv(tmp_path, words, num_rollout=num_rollout))
            events = event_loop(cfg)
            stack.callback(events.close)
            return build(cfg, events, stack)

        yield stages


def kill_at_work(line):
    """Kills the process of an engine that owes answers."""
    pid = ray.get(line.handle.where.remote()).pid
    while not line.num_asked:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)


def test_two_engines_take_new_weights_under_running_answers_and_one_may_die(stages_of, tmp_path):
    num_rollout = 6
    stages, cfg = stages_of(f"{TWO} {LONG}", num_rollout)
    line = stages.sync.engines.lines[0]
    old = line.handle
    order = tmp_path / "order.jsonl"

    def kill():
        while not order.exists() or len(order.read_text().splitlines()) < 2:
            time.sleep(0.01)
        kill_at_work(line)

    killer = threading.Thread(target=kill)
    killer.start()
    train(cfg, stages)
    killer.join()
    assert line.handle is not old
    check_order(tmp_path, num_rollout)


def test_an_engine_of_two_processes_takes_new_weights_under_running_answers(stages_of, tmp_path):
    words = f"{TWO} --rollout-num-gpus-per-engine 2 {LONG} --n-samples-per-prompt 2"
    stages, cfg = stages_of(words, 3)
    train(cfg, stages)  # raises unless the engine shows the weights of every update
    check_order(tmp_path, 3)


def check_order(folder, num_rollout):
    """Passes if every prompt was trained on once, some answers by weights of several versions."""
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").open()]
    assert len(rows) == num_rollout
    assert all(row["rollout/staleness/max"] <= 2 for row in rows)
    assert any(row["rollout/staleness/mixed"] > 0 for row in rows)
    groups = [
        group for text in (folder / "order.jsonl").open() for group in json.loads(text)["groups"]
    ]
    assert sorted(prompt for prompt, _, _ in groups) == list(range(4 * num_rollout))


def test_the_only_engine_that_dies_goes_on_with_the_newest_weights(stages_of):
    stages, cfg = stages_of(f"{APART} {ONE_STEP} --rollout-max-response-len 60", 3)
    engines = stages.sync.engines
    with stages.devices.publishing():
        stages.sync.publish(stages.trainer.weights(0))
    rollouts = [stages.sampler.collect(0)]
    kill_at_work(engines.lines[0])  # in what is ahead
    learn(cfg, stages, rollouts[0].groups, Timers())  # nobody has weights 0 after this
    rollouts.append(stages.sampler.collect(1))
    with stages.devices.publishing():
        stages.sync.publish(stages.trainer.weights(1))  # raises unless the engine shows them
    samples = [s for one in rollouts for group in one.groups for s in group.samples]
    assert sorted(s.index for s in samples) == list(range(32))
    assert {int(v) for s in samples for v in s.version_T[s.sampled_T]} <= {0, 1}
