"""Processes that are forked for tests are like those that are started."""

import os
import signal
import subprocess

import ray

SCRIPT = """
import os, sys
print(*sys.argv[1:], flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
sys.exit(3)
"""


def test_no_two_of_rays_processes_draw_the_same_ids(cluster):
    class Drawing:
        def draw(self):
            return os.getpid(), ray.ObjectRef.from_random().hex()

    drawing = [ray.remote(Drawing).remote() for _ in range(2)]
    drawn = ray.get([one.draw.remote() for one in drawing])
    assert all(first != second for first, second in zip(*drawn, strict=True))
    for one in drawing:
        ray.kill(one)


def test_a_process_has_its_words_and_how_it_ended_is_told(python_with, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def ended(*words):
        command = [*python_with("json"), str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout, done.returncode

    assert ended("a", "b c") == ("a b c\n", 3)
    assert ended("killed") == ("killed\n", -signal.SIGKILL)
