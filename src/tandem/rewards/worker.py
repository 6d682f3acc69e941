"""A process that judges answers one at a time: `python -m tandem.rewards.worker DESCRIPTOR`.

It speaks JSON over the socket whose file descriptor it is given, and imports nothing but graders.
Takes an answer; gives "started" once its grader is imported, then a verdict; waits for the next
answer; ends when the other side closes. It may be killed at any moment, and dies by itself when
nobody did so in time, so that a run that was killed leaves no process that computes for ever.
"""

import json
import logging
import resource
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

from tandem.rewards import algebra
from tandem.rewards.grade import BOXED, NEEDS_ALGEBRA, Answer, grade
from tandem.rewards.math_graders import Algebra

MEMORY_BYTES = 3 * 2**30
"""Address space of a worker; sympy itself needs about 0.3 GB of it."""
GRACE_S = 5.0
"""How much longer than its limit a worker lives when nobody kills it."""


def main(descriptor: int) -> None:
    """Judges until the connection closes."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even inside a C call
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    connection = Connection(descriptor)
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        answer = Answer(**request["answer"])
        heavy = _warm(answer.rm_type)
        connection.send_bytes(b"started")
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"] + GRACE_S)
        reply = _judge(answer, heavy)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(reply).encode())


def _judge(answer: Answer, heavy: Algebra) -> dict[str, Any]:
    try:
        return {"value": grade(answer, heavy)}
    except MemoryError:
        return {"error": f"grading it took more than {MEMORY_BYTES >> 30} GiB of memory"}
    except Exception as error:
        # whatever a grader stumbles over is the verdict's own fault, never the run's
        return {"error": f"{type(error).__name__}: {error}"}


def _warm(rm_type: str) -> Algebra:
    """The heavy part of grading, imported before the clock of this answer starts."""
    plain = rm_type.removeprefix(BOXED)
    if plain in NEEDS_ALGEBRA:
        algebra.warm_up(uses_math_verify=plain == "math_verify")
    return algebra


def _limit(kind: int, amount: int) -> None:
    _, hard = resource.getrlimit(kind)
    ceiling = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    try:
        resource.setrlimit(kind, (ceiling, hard))
    except (ValueError, OSError):
        return  # some systems do not have this limit


if __name__ == "__main__":
    main(int(sys.argv[1]))
