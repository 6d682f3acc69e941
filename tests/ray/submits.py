"""Starts a Ray that asks for a token, and submits a run to it as launch scripts do.

    python tests/ray/submits.py FLAGS...

Standard output is that of `ray job submit`. The token is in the environment: Ray reads it when it
is imported.
"""

import subprocess
import sys
import time

import ray

NOT_YET = ("No available agent to submit job", "Failed to connect to Ray cluster")
LIMIT_S = 60.0


def main(argv):
    context = ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_port=0)
    ray_command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    address = ["--address", f"http://{context.dashboard_url}"]
    run = ["--", sys.executable, "train.py", *argv]
    begin_s = time.monotonic()
    while True:
        done = subprocess.run([*ray_command, *address, *run], capture_output=True, text=True)
        # the agent that takes jobs comes up after the rest of a cluster
        is_early = any(said in done.stdout + done.stderr for said in NOT_YET)
        if not is_early or time.monotonic() - begin_s > LIMIT_S:
            break
        time.sleep(1)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    ray.shutdown()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
