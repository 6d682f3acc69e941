"""Tools that may hang, crash or eat memory: programs in processes of their own, killed when late.

A program reads one line of JSON from its standard input for every call and answers with one line of
JSON. It may not write files, and its memory is limited. It is not walled off from reading files or
from the network: what runs code that a model wrote belongs into a container besides.
"""

import asyncio
import json
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

BOOT = """
import resource, runpy, sys
memory, program = int(sys.argv[1]), sys.argv[2]
for kind, amount in (("AS", memory), ("CORE", 0), ("FSIZE", 0), ("NOFILE", 64)):
    number = getattr(resource, "RLIMIT_" + kind)
    hard = resource.getrlimit(number)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(number, (amount, amount))
sys.argv = [program]
print("ready", flush=True)
runpy.run_path(program, run_name="__main__")
"""

START_LIMIT_S = 60.0
"""Time that an interpreter may take to start, on a machine that has much else to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a call gave: a value, or why there is none."""

    value: Any = None
    error: str | None = None


class Sandbox:
    """Processes that run one program, each with one call at a time.

    Takes calls; gives an Answer to each; waits for an idle process. A process that is late or dies
    is replaced, and its call gets an error.
    """

    def __init__(
        self,
        program: str | Path,
        *,
        num_processes: int = 2,
        limit_s: float = 2.0,
        memory_bytes: int = 512 << 20,
    ) -> None:
        self._program = str(program)
        self._limit_s, self._memory_bytes = limit_s, memory_bytes
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        for _ in range(num_processes):
            self._idle.put(None)
        self._num_processes = num_processes
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="sandbox")

    async def call(self, question: Any) -> Answer:
        """The program's answer to a question that JSON can hold."""
        line = json.dumps(question).encode() + b"\n"
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, line)

    def close(self) -> None:
        """Ends the processes; calls under way are answered first."""
        self._threads.shutdown()
        for _ in range(self._num_processes):
            process = self._idle.get()
            if process is not None:
                _end(process)

    def _ask(self, line: bytes) -> Answer:
        """Runs in a thread: one call of an idle process."""
        process = self._idle.get()
        try:
            if process is None or process.poll() is not None:
                process = self._started()
                assert process.stdout is not None, "it is a pipe"
                select.select([process.stdout], [], [], START_LIMIT_S)
                process.stdout.readline()  # ready; nothing if it died, as the call will find
            answer = _exchange(process, line, self._limit_s)
            if answer.error is not None:
                _end(process)
                process = None
            return answer
        finally:
            self._idle.put(process)

    def _started(self) -> subprocess.Popen[bytes]:
        # -I: neither the working folder nor the environment decides what is imported
        command = [sys.executable, "-I", "-c", BOOT, str(self._memory_bytes), self._program]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,  # Ctrl-C is for the run, which ends its tools itself
        )


def _exchange(process: subprocess.Popen[bytes], line: bytes, limit_s: float) -> Answer:
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    try:
        process.stdin.write(line)
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], limit_s)
        if not ready:
            return Answer(error=f"no answer within {limit_s:g} s")
        said = process.stdout.readline()
        if not said.endswith(b"\n"):
            return Answer(error="the process died")
        return Answer(value=json.loads(said))
    except (OSError, ValueError) as error:
        return Answer(error=f"{type(error).__name__}: {error}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
