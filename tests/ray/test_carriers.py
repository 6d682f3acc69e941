"""New weights on their way to engines in processes of their own, through folders and groups."""

import json
import logging
import os
import signal
import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
import ray
import torch
from torch.distributed import TCPStore

from tandem.carriers.group import _key
from tandem.config import load_config
from tandem.errors import SyncError
from tandem.loop import learn
from tandem.observe import Timers
from tandem.rollout import EventLoop
from tandem.runtime.ray.build import build
from tandem.runtime.ray.carriers import DirectCarrier

pytestmark = pytest.mark.usefixtures("cluster")
APART = "--actor-num-gpus-per-node 1 --rollout-num-gpus 1"
calls = []  # what the hook below was given


def after_write(args, version_dir, rollout_engines):
    files = sorted(os.listdir(version_dir))
    calls.append((os.path.basename(version_dir), len(rollout_engines), files))


@pytest.fixture(scope="module")
def learnt(rows_of):
    """The numbers of a run in one process, without times."""
    return [without_times(row) for row in rows_of("--runtime local")]


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("perf/")}


def test_a_run_through_folders_gives_the_bits_of_one_process(rows_of, learnt, tmp_path):
    calls.clear()
    rows = rows_of(
        f"{APART} --update-weight-transport disk --update-weight-disk-dir {tmp_path} "
        f"--update-weight-local-checkpoint-dir {tmp_path}/host "
        f"--custom-update-weight-post-write-path {__name__}.after_write"
    )
    assert [without_times(row) for row in rows] == learnt
    assert [name for name, _, _ in calls] == [f"weight_v{v:06d}" for v in range(3)]
    assert all(count == 1 and "model.safetensors" in files for _, count, files in calls)
    assert [path.name for path in tmp_path.iterdir()] == ["host"]  # the others are removed
    assert (tmp_path / "host" / "weight_v000002" / "model.safetensors").is_file()
    assert rows[0]["perf/update_weights_wire_bytes"] > 0


def test_a_run_on_changed_bytes_gives_the_bits_of_one_process(rows_of, learnt, tmp_path):
    rows = rows_of(
        f"{APART} --update-weight-transport disk --update-weight-disk-dir {tmp_path}/disk "
        f"--update-weight-mode delta --update-weight-local-checkpoint-dir {tmp_path}/host "
        "--update-weight-delta-encoding overwrite --update-weight-disk-keep-files"
    )
    assert [without_times(row) for row in rows] == learnt
    assert all(0 < row["perf/update_weights_density"] <= 1 for row in rows)
    assert len(list((tmp_path / "disk").iterdir())) == 3


@pytest.fixture(scope="module")
def stages(tiny, tmp_path_factory):
    """The stages of a run of a rank and two engines, whose host follows changed bytes."""
    torch.set_num_threads(1)
    disk, host = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("host")
    words = f"""--actor-num-gpus-per-node 1 --rollout-num-gpus 2 --update-weight-transport disk
        --update-weight-mode delta --update-weight-disk-dir {disk}
        --update-weight-local-checkpoint-dir {host} --update-weight-buffer-size 8192"""
    with ExitStack() as stack:
        events = EventLoop()
        stack.callback(events.close)
        cfg = load_config(tiny.argv(tmp_path_factory.mktemp("run"), words))
        built, _ = build(cfg, events, stack)
        built.sync.publish(built.trainer.weights(0))
        yield cfg, built


def learn_on(cfg, stages):
    learn(cfg, stages, stages.sampler.collect(0).groups, Timers())


def test_an_engine_killed_under_changed_bytes_comes_back_and_follows(stages):
    cfg, built = stages
    fleet = built.sync.engines
    for version in (1, 2):
        learn_on(cfg, built)
        weights = built.trainer.weights(version)
        if version == 1:
            pid = ray.get(fleet.lines[0].handle.where.remote()).pid
            os.kill(pid, signal.SIGKILL)
        built.sync.publish(weights)  # raises unless every engine shows these weights
        assert [one.version for one in fleet.all_stats()] == [version, version]


def test_a_copy_that_went_wrong_is_named_and_made_anew(stages, caplog):
    cfg, built = stages
    host = cfg.sync.update_weight_local_checkpoint_dir
    with open(os.path.join(host, "version.json"), "w") as file:
        json.dump({"version": 77}, file)
    learn_on(cfg, built)
    logging.getLogger("tandem").addHandler(caplog.handler)
    built.sync.publish(built.trainer.weights(3))
    logging.getLogger("tandem").removeHandler(caplog.handler)
    assert "missed weight update 3 and gets it again" in caplog.text
    assert "holds version 77" in caplog.text
    learn_on(cfg, built)
    caplog.clear()
    numbers = built.sync.publish(built.trainer.weights(4))
    assert 0 < numbers["perf/update_weights_density"] <= 1
    assert "missed" not in caplog.text


def test_an_engine_that_never_shows_the_weights_ends_the_run(stages):
    _, built = stages
    weights = built.trainer.weights(5)
    wrong = replace(weights, digests=dict.fromkeys(weights.digests, 1))
    with pytest.raises(SyncError, match="engine 1 holds other bytes"):
        built.sync.publish(wrong)


def test_an_engine_killed_amid_the_buckets_of_an_update_is_named_and_gets_it_again(stages, caplog):
    cfg, built = stages
    fleet = built.sync.engines
    carrier = fleet._carrier = DirectCarrier(built.trainer)
    built.sync.publish(built.trainer.weights(6))  # both engines are in the group from now on
    learn_on(cfg, built)
    weights = built.trainer.weights(7)
    pid = ray.get(fleet.lines[1].handle.where.remote()).pid
    os.kill(pid, signal.SIGSTOP)  # it takes no bucket, so the update cannot end before it does
    sender = carrier._members[0]
    told = TCPStore(sender.host, sender.port, is_master=False, wait_for_workers=False)

    def kill():
        told.wait([_key(7, 1)], timedelta(minutes=2))  # the first bucket is on its way
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    logging.getLogger("tandem").addHandler(caplog.handler)
    built.sync.publish(weights)  # raises unless every engine shows these weights
    logging.getLogger("tandem").removeHandler(caplog.handler)
    killer.join()
    assert f"pid {pid} died" in caplog.text
    assert "engine 1 missed weight update 7 and gets it again" in caplog.text
    assert [one.version for one in fleet.all_stats()] == [7, 7]
