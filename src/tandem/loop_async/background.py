"""An event loop that goes on in a thread of its own, and can be made to pause."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundRunner:
    """Like `asyncio.Runner`, but its loop never rests: tasks go on while nobody waits for one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="sampling", daemon=True)
        self._thread.start()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop, for `call_soon_threadsafe`."""
        return self._loop

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; called from any thread but the loop's own."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no task takes a turn: each stands where it last waited.

        An engine of this process stands between two steps then, so its weights may be changed.
        """
        has_paused, may_go_on = threading.Event(), threading.Event()

        def pause() -> None:
            has_paused.set()
            may_go_on.wait()

        self._loop.call_soon_threadsafe(pause)
        has_paused.wait()
        try:
            yield
        finally:
            may_go_on.set()

    def close(self) -> None:
        """Cancels every task, and ends the loop and its thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _turn(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
