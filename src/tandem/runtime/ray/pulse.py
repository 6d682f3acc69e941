"""What a process is doing, as somebody beside its working thread sees it."""

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

PACKAGE = "/tandem/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """A sign of life."""

    span: str | None  # what it was called to do; None: nothing
    seconds: float  # since then
    place: int  # changes whenever the working thread gets on
    waits_in: str  # innermost function, and the innermost line of ours that called it


class Vitals:
    """Keeps what the working thread does; read from another thread."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._spans: list[tuple[str, float]] = []
        self._num_ticks = 0

    def tick(self, *_: object) -> None:
        """The working thread got on, though it may stand at the same line as before."""
        self._num_ticks += 1

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """The working thread, which is the one that calls this, does `name` within the block."""
        self._thread = threading.get_ident()
        self._spans.append((name, time.monotonic()))
        try:
            yield
        finally:
            self._spans.pop()

    def pulse(self, idle: str | None = None) -> Pulse:
        """What the working thread does now, `idle` where it was not called for anything."""
        frame = sys._current_frames().get(self._thread)
        spans = list(self._spans)
        name, since_s = spans[-1] if spans else (idle, time.monotonic())
        lines = tuple((id(one.f_code), one.f_lasti) for one in _frames(frame))
        return Pulse(
            span=name,
            seconds=time.monotonic() - since_s,
            place=hash((lines, self._num_ticks)),
            waits_in=_waits_in(frame),
        )


def stacks() -> str:
    """The stack of every thread of this process, newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            lines = "".join(traceback.format_stack(frame))
            parts.append(f"thread {names.get(ident, ident)}\n{lines}")
    return "\n".join(parts)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _waits_in(frame: FrameType | None) -> str:
    innermost = frame
    if innermost is None:
        return "nothing"
    said = f"{innermost.f_code.co_name} ({_line(innermost)})"
    ours = next((one for one in _frames(frame) if PACKAGE in one.f_code.co_filename), None)
    if ours is None or ours is innermost:
        return said
    return f"{said}, called by {ours.f_code.co_name} ({_line(ours)})"


def _line(frame: FrameType) -> str:
    path = frame.f_code.co_filename.rsplit(PACKAGE, 1)[-1]
    return f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
