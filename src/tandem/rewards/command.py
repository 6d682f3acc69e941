"""`tandem grade`: judges answers from a stream, one JSON line each."""

import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from queue import Queue
from typing import Any, TextIO

from tandem.errors import ConfigError, TandemError
from tandem.rewards.grade import REMOTE, Answer, Verdict, check_rm_type
from tandem.rewards.pool import GraderPool

LIMIT_S = 10.0
LINES_AHEAD = 256
"""Lines that are read before the first of them is answered."""


def run_grade(
    rm_type: str, lines_in: Iterable[str | bytes], out: TextIO, *, limit_s: float = LIMIT_S
) -> None:
    """Writes `{"reward": ...}` or `{"error": ...}` for every line, in order, as verdicts come.

    A line is `{"response": ..., "label": ..., "metadata": {...}}`; its metadata may name another
    `rm_type`. Blank lines are passed over. Only a reward that does not exist raises (ConfigError).
    """
    _check(rm_type)
    pool = GraderPool(num_workers=min(4, os.cpu_count() or 1), limit_s=limit_s)
    waiting: Queue[Future[Verdict] | Verdict | None] = Queue(LINES_AHEAD)
    writer = threading.Thread(target=_write, args=(waiting, out), name="grade-writer", daemon=True)
    writer.start()
    try:
        for number, line in enumerate(getattr(lines_in, "buffer", lines_in)):
            if line.strip():
                waiting.put(_asked(pool, rm_type, line, number))
    finally:
        waiting.put(None)
        writer.join()
        pool.close()


def _check(rm_type: str) -> None:
    check_rm_type(rm_type)
    if rm_type.endswith(REMOTE):
        raise ConfigError(f"--rm-type {rm_type} is asked during a run; ask the service itself")


def _asked(
    pool: GraderPool, rm_type: str, line: str | bytes, number: int
) -> Future[Verdict] | Verdict:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Verdict(error=f"not JSON: {error}")
    if not isinstance(fields, dict) or "response" not in fields:
        return Verdict(error='wanted a JSON object with "response" and "label"')
    response, metadata = fields["response"], fields.get("metadata") or {}
    if not isinstance(response, (str, type(None))):
        return Verdict(error=f'"response" must be a string, not {type(response).__name__}')
    if not isinstance(metadata, dict):
        return Verdict(error=f'"metadata" must be an object, not {type(metadata).__name__}')
    answer = Answer(
        rm_type=str(metadata.get("rm_type") or rm_type).strip(),
        response=response,
        label=fields.get("label"),
        metadata=metadata,
        key=str(number),
    )
    try:
        _check(answer.rm_type)
    except ConfigError as error:
        return Verdict(error=str(error))
    return pool.submit(answer)


def _write(waiting: Queue[Future[Verdict] | Verdict | None], out: TextIO) -> None:
    """Takes verdicts, gives lines, waits for each verdict in its turn, ends at None."""
    is_broken = False
    while (verdict := waiting.get()) is not None:
        try:
            said = verdict.result() if isinstance(verdict, Future) else verdict
        except TandemError as error:
            said = Verdict(error=str(error))
        if is_broken:
            continue
        try:
            out.write(json.dumps(_line(said)) + "\n")
            out.flush()
        except BrokenPipeError:
            is_broken = True  # nobody reads any more; the rest is taken off the queue unwritten


def _line(verdict: Verdict) -> dict[str, Any]:
    return {"reward": verdict.value} if verdict.error is None else {"error": verdict.error}
