"""SIGTERM and Ctrl-C ask a run to save and leave; a second one ends it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(stop: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Within the block the first signal calls `stop`; a second one acts as if nobody listened."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def first(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, previous[each])
        say(
            f"{signal.Signals(number).name}: ending after what is under way, then saving; "
            "once more ends the run at once, unsaved"
        )
        stop()

    for number in SIGNALS:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, previous[number])
