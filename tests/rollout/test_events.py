import asyncio
import threading

import pytest

from tandem.errors import Stopped
from tandem.rollout.events import EventLoop


async def forever() -> None:
    await asyncio.Event().wait()


def test_work_gives_its_result_and_the_loop_outlives_it():
    events = EventLoop()

    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    assert events.run(loop_id()) == events.run(loop_id())
    events.close()


def test_stop_ends_work_under_way_and_refuses_more():
    events = EventLoop()
    threading.Timer(0.05, events.stop).start()
    with pytest.raises(Stopped):
        events.run(forever())
    with pytest.raises(Stopped):
        events.run(forever())
    events.close()


def test_cancellation_that_nobody_asked_for_is_not_a_stop():
    events = EventLoop()

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        events.run(cancels_itself())
    events.close()


def test_results_are_never_made_into_text():
    class Big:
        def __repr__(self) -> str:
            raise AssertionError("somebody wrote a whole rollout out")

    async def big() -> Big:
        return Big()

    events = EventLoop()
    assert isinstance(events.run(big()), Big)
    events.close()
