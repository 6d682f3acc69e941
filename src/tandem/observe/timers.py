"""Named spans of wall time, their sums, and a trace that a browser can show."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One piece of work. `begin_s` is on the wall clock, so that resumed runs line up."""

    name: str
    begin_s: float
    seconds: float
    depth: int = 0  # spans that were open around it

    @property
    def end_s(self) -> float:
        return self.begin_s + self.seconds


class Timers:
    """Collects the spans of one thread until they are taken."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        # spans are measured on the steady clock and only placed on the wall clock
        self._offset_s = time.time() - clock()
        self._spans: list[Span] = []
        self._depth = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measures the block, also when it raises."""
        begin_s = self._clock()
        depth, self._depth = self._depth, self._depth + 1
        try:
            yield
        finally:
            self._depth = depth
            seconds = self._clock() - begin_s
            begin_s += self._offset_s
            self._spans.append(Span(name=name, begin_s=begin_s, seconds=seconds, depth=depth))

    def take(self) -> tuple[Span, ...]:
        """The finished spans since the last call, in order of their end."""
        taken, self._spans = tuple(self._spans), []
        return taken


def seconds_by_name(spans: Iterable[Span]) -> dict[str, float]:
    """The seconds of all spans with one name, summed; names in order of first appearance."""
    sums: dict[str, float] = {}
    for span in spans:
        sums[span.name] = sums.get(span.name, 0.0) + span.seconds
    return sums


def elapsed(spans: Sequence[Span]) -> float:
    """Seconds from the beginning of the first span to the end of the last."""
    if not spans:
        return 0.0
    return max(span.end_s for span in spans) - min(span.begin_s for span in spans)


def append_trace(path: Path, spans: Iterable[Span], details: Mapping[str, object]) -> None:
    """Adds the spans to a file in Chrome's trace format (open it in chrome://tracing, Perfetto).

    The format's array needs no closing bracket, so a run that is killed leaves a readable file.
    `details` are shown with each span.
    """
    lines = [] if path.exists() and path.stat().st_size else ["["]
    for span in spans:
        event = {
            "name": span.name,
            "ph": "X",
            "ts": round(span.begin_s * 1e6),
            "dur": round(span.seconds * 1e6),
            "pid": os.getpid(),
            "tid": 0,
            "args": dict(details),
        }
        lines.append(json.dumps(event) + ",")
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
