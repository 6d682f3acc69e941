"""How a run of several processes ends when somebody ends its driver."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120  # for what must happen at some time; a quiet machine needs seconds
WORDS = "--actor-num-gpus-per-node 1 --rollout-num-gpus 1 --save-interval 1000"


class Launch:
    """A driver of a long run, and the processes that its log names."""

    def __init__(self, argv):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self._log = []
        self.process = subprocess.Popen(
            [sys.executable, "train.py", *argv],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def read_until(self, word):
        """Reads the log until it says so."""
        for line in self.process.stderr:
            self._log.append(line)
            if word in line:
                return
        raise AssertionError(f"never said {word}: {''.join(self._log)[-3000:]}")

    def pids(self):
        return [int(pid) for line in self._log for pid in re.findall(r"pid (\d+)$", line.strip())]

    def wait(self):
        self._log += self.process.stderr.readlines()
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def launch(tiny, tmp_path):
    argv = tiny.argv(tmp_path, f"{WORDS} --save {tmp_path} --load {tmp_path}", num_rollout=100_000)
    launch = Launch(argv)
    launch.read_until("engine 0 on ")
    deadline_s = time.monotonic() + PATIENCE_S
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 1):
        assert time.monotonic() < deadline_s, "no step was logged"
        time.sleep(0.1)
    yield launch
    launch.process.kill()
    launch.process.wait()
    launch.process.stderr.close()


def check_all_gone(pids):
    assert len(pids) == 2
    deadline_s = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, "a process was left behind"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_and_leaves_no_process(number, launch, tmp_path):
    launch.process.send_signal(number)
    assert launch.wait() == 143
    assert (tmp_path / "latest_checkpointed_iteration.txt").is_file()
    check_all_gone(launch.pids())


def test_a_driver_that_is_killed_leaves_no_process(launch):
    launch.process.kill()
    launch.wait()
    check_all_gone(launch.pids())
