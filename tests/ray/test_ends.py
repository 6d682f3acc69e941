"""How a run of several processes ends when somebody ends its driver."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120  # for what must happen at some time; a quiet machine needs seconds
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own helpers on a host: without its head they end by themselves after a minute."""
WORDS = "--actor-num-gpus-per-node 1 --rollout-num-gpus 1 --save-interval 1000"


class Launch:
    """A driver of a long run, with a mark in the environment that all its processes have."""

    def __init__(self, program, argv):
        self._mark = f"MARK={uuid.uuid4()}"
        env = os.environ | {"OMP_NUM_THREADS": "1"} | dict([self._mark.split("=")])
        self.process = subprocess.Popen(
            [sys.executable, program, *argv],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # its own, as a shell gives to a command
        )

    def alive(self):
        """Command lines of processes that have the mark: the driver, Ray's, ranks and engines."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                pass  # it has ended, or is somebody else's
        return [line for line in found if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every run here saves, and goes on from."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture
def start(tiny, folder, tmp_path):
    """Starts a program; gives its launch once it has logged a step."""
    launches = []

    def started(program):
        words = f"{WORDS} --save {folder} --load {folder}"
        launch = Launch(program, tiny.argv(tmp_path, words, num_rollout=100_000))
        launches.append(launch)
        metrics, deadline_s = tmp_path / "metrics.jsonl", time.monotonic() + PATIENCE_S
        while not (metrics.exists() and metrics.read_text().count("\n") > 1):
            assert launch.process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline_s, "no step was logged"
            time.sleep(0.1)
        assert len([line for line in launch.alive() if "ray::Worker" in line]) == 2
        return launch

    yield started
    for launch in launches:
        launch.process.kill()
        launch.process.wait()


def check_all_gone(launch, but=()):
    deadline_s = time.monotonic() + PATIENCE_S
    while left := [line for line in launch.alive() if line.strip() not in but]:
        assert time.monotonic() < deadline_s, f"left behind: {left}"
        time.sleep(0.1)


def saved(folder):
    return int((folder / "latest_checkpointed_iteration.txt").read_text())


def test_a_run_whose_group_gets_sigterm_saves_and_leaves_no_process(start, folder):
    launch = start("train.py")
    os.killpg(launch.process.pid, signal.SIGTERM)  # as `timeout` does, and schedulers
    assert launch.process.wait(PATIENCE_S) == 143
    assert saved(folder) >= 0
    check_all_gone(launch)


def test_an_asynchronous_run_that_gets_ctrl_c_saves_and_leaves_no_process(start, folder):
    before = saved(folder)
    launch = start("train_async.py")
    os.killpg(launch.process.pid, signal.SIGINT)  # a terminal tells all of the group
    assert launch.process.wait(PATIENCE_S) == 143
    assert saved(folder) > before  # it went on from what the other saved
    check_all_gone(launch)


def test_a_driver_that_is_killed_leaves_no_process(start):
    launch = start("train.py")
    launch.process.kill()
    launch.process.wait()
    check_all_gone(launch, but=AGENTS)
