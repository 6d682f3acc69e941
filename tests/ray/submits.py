"""Starts a Ray that asks for a token, and submits a run to it as launch scripts do.

    python tests/ray/submits.py FLAGS...

Standard output is that of `ray job submit`. The token is in the environment.
"""

import socket
import subprocess
import sys
import time

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
NOT_YET = ("No available agent to submit job", "Failed to connect to Ray")
LIMIT_S = 90.0


def main(argv):
    # of its own: the agent that takes jobs is not there if another Ray's has the usual port
    port, dashboard, agent = free_ports(3)
    head = subprocess.Popen(
        [
            *RAY,
            *("start", "--head", "--block", "--num-cpus", "2", "--include-dashboard", "true"),
            *("--port", port, "--dashboard-port", dashboard),
            *("--dashboard-agent-listen-port", agent),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        done = submitted(f"http://127.0.0.1:{dashboard}", argv)
    finally:
        head.terminate()
        head.wait()
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def submitted(address, argv):
    run = ["--", sys.executable, "train.py", *argv]
    begin_s = time.monotonic()
    while True:
        done = subprocess.run(
            [*RAY, "job", "submit", "--address", address, *run], capture_output=True, text=True
        )
        is_early = any(said in done.stdout + done.stderr for said in NOT_YET)
        if not is_early or time.monotonic() - begin_s > LIMIT_S:
            return done
        time.sleep(1)


def free_ports(count):
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in listening]
    for one in listening:
        one.close()
    return ports


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
