"""Python for processes that tests start by the dozen: forked where the imports are done already.

    python -S tests/forks.py ADDRESS MODULES SCRIPT WORDS...

runs the script as `python SCRIPT WORDS...` would, in a child of the process that listens there,
once that has imported MODULES (joined by commas): torch alone takes seconds. The child has the
environment, folder and streams of this one; each ends with the other.

    python tests/forks.py FOLDER

is the process that listens; it says where. It has no threads, and imports nothing that starts any.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress

MOST_BYTES = 1 << 17


def ask(address: str, modules: str, argv: list[str]) -> int:
    """The exit status of the child; a signal that ended it ends this process too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(address)
        asked = [modules.split(","), argv, os.getcwd(), dict(os.environ)]
        socket.send_fds(line, [json.dumps(asked).encode()], [0, 1, 2])
        status = int(line.recv(MOST_BYTES) or 1 << 8)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def listen(folder: str) -> list[str]:
    """The script and its words, in a child that was asked for. Takes what `ask` sends, gives
    children; waits for the next who asks, and ends with its standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a child ends unheard
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/forks")
        listener.listen()
        print(f"{folder}/forks", flush=True)  # noqa: T201
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            line, _ = listener.accept()
            said, streams, *_ = socket.recv_fds(line, MOST_BYTES, 3)
            modules, argv, folder, environment = json.loads(said)
            os.environ.update(environment)  # some modules read it as they are imported, Ray's too
            for module in modules:
                importlib.import_module(module)
            gc.collect()
            gc.freeze()  # the collector would have every child copy every page
            if not os.fork():
                listener.close()
                become_child(line, streams, folder, environment)
                return argv
            for stream in (line.detach(), *streams):
                os.close(stream)
    sys.exit()


def become_child(
    line: socket.socket, streams: list[int], folder: str, environment: dict[str, str]
) -> None:
    """Returns in a child of this process, with these streams, this folder and environment."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        wait_for(child, line)
    line.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def wait_for(child: int, line: socket.socket) -> None:
    """Says how the child ended, or ends it if nobody wants to hear; then ends this process."""
    ended = os.pidfd_open(child)
    if line in select.select([ended, line], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        line.send(str(status).encode())
    os._exit(0)


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(ask(sys.argv[1], sys.argv[2], sys.argv[3:]))
    sys.argv = listen(sys.argv[1])
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
