"""Grading in processes that can be killed, so that no answer can hang or kill a run."""

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import tandem
from tandem.errors import ResourceError
from tandem.rewards.grade import Answer, Verdict, grade

START_LIMIT_S = 120.0
"""Time a worker has to start and to import a grader; it does not count against an answer."""
INLINE_CHARS = 100_000
INLINE_LABEL_CHARS = 2000
"""Longer answers and labels are judged in a worker, whatever the reward."""


class Undecided(Exception):
    """Strings alone do not settle this answer."""


class StringsOnly:
    """Stands in for the algebra where nothing slow may run."""

    def is_zero(self, expression: str) -> NoReturn:
        raise Undecided

    def is_verified(self, answer: str, truth: str) -> NoReturn:
        raise Undecided


class GraderPool:
    """Worker processes, each with one answer at a time and a limit on every verdict.

    Workers start when the first answer needs one. A worker that takes longer than `limit_s`, or
    dies, is replaced, and its answer gets no verdict.
    """

    def __init__(self, *, num_workers: int, limit_s: float) -> None:
        assert num_workers > 0, "a pool has at least one worker"
        self._limit_s = limit_s
        self._idle: SimpleQueue[Worker | None] = SimpleQueue()
        for _ in range(num_workers):
            self._idle.put(None)
        self._num_workers = num_workers
        self._working: set[Worker] = set()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="grader")

    async def grade(self, answer: Answer) -> Verdict:
        """The verdict of one answer; raises ConfigError for a reward that does not exist."""
        verdict = grade_at_once(answer)
        return await asyncio.wrap_future(self._send(answer)) if verdict is None else verdict

    def submit(self, answer: Answer) -> Future[Verdict]:
        """A future of the verdict, for callers without an event loop."""
        verdict = grade_at_once(answer)
        if verdict is None:
            return self._send(answer)
        done: Future[Verdict] = Future()
        done.set_result(verdict)
        return done

    def close(self) -> None:
        """Kills the workers; answers under way get no verdict."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in tuple(self._working):
            worker.interrupt()
        for _ in range(self._num_workers):
            idle = self._idle.get()
            if idle is not None:
                idle.kill()
        self._threads.shutdown()

    def _send(self, answer: Answer) -> Future[Verdict]:
        return self._threads.submit(self._ask, answer)

    def _ask(self, answer: Answer) -> Verdict:
        """Runs in a thread: takes an idle worker, gives a verdict, waits for the worker."""
        worker = self._idle.get()
        try:
            if self._is_closed:
                return Verdict(error="the run is ending")
            if worker is None or not worker.is_alive:
                worker = Worker()
            self._working.add(worker)
            verdict = worker.ask(answer, self._limit_s)
            self._working.discard(worker)
            return verdict
        finally:
            self._idle.put(worker)


def grade_at_once(answer: Answer) -> Verdict | None:
    """The verdict, where comparing strings of bounded length gives one; else None."""
    if len(answer.response or "") > INLINE_CHARS:
        return None
    if isinstance(answer.label, str) and len(answer.label) > INLINE_LABEL_CHARS:
        return None
    try:
        return Verdict(value=grade(answer, StringsOnly()))
    except Undecided:
        return None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        return Verdict(error=f"{type(error).__name__}: {error}")


class Worker:
    """One grading process and the connection to it."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        package = str(Path(tandem.__file__).parent.parent)
        paths = [package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        # -P: a file in the working folder must not stand in for a module of that name
        command = [sys.executable, "-P", "-m", "tandem.rewards.worker", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run, which ends its workers itself
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )
        except OSError as error:
            ours.close()
            raise ResourceError(f"a grading process cannot be started: {error}") from error
        finally:
            theirs.close()
        self._connection = ours

    @property
    def is_alive(self) -> bool:
        return not self._connection.closed and self._process.poll() is None

    def ask(self, answer: Answer, limit_s: float) -> Verdict:
        """The verdict; the process is killed when it is late or breaks the conversation."""
        try:
            request = json.dumps({"answer": asdict(answer), "limit_s": limit_s}, default=str)
        except (TypeError, ValueError, RecursionError) as error:
            return Verdict(error=f"the answer cannot be handed to a worker: {error}")
        try:
            self._connection.send_bytes(request.encode())
            if not self._connection.poll(START_LIMIT_S):
                return self._given_up(f"the grader did not start within {START_LIMIT_S:g} s")
            self._connection.recv_bytes()
            if not self._connection.poll(limit_s):
                return self._given_up(f"no verdict within {limit_s:g} s (--reward-timeout-s)")
            return Verdict(**json.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            self.kill()
            return Verdict(error=f"the grader died with status {self._process.returncode}")

    def interrupt(self) -> None:
        """Ends the process; whoever waits for its verdict sees it die."""
        self._process.kill()

    def kill(self) -> None:
        """Ends the process and the connection; for the thread that asks it."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _given_up(self, reason: str) -> Verdict:
        self.kill()
        return Verdict(error=reason)
