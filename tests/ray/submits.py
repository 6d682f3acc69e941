"""Starts a Ray that asks for a token, and submits a run to it as launch scripts do.

    python tests/ray/submits.py FLAGS...

Standard output is that of `ray job submit`. The token is in the environment: Ray reads it when it
is imported.
"""

import subprocess
import sys

import ray


def main(argv):
    context = ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_port=0)
    ray_command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    address = ["--address", f"http://{context.dashboard_url}"]
    run = ["--", sys.executable, "train.py", *argv]
    done = subprocess.run([*ray_command, *address, *run])
    ray.shutdown()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
