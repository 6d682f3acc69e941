"""Engines that take their steps together, so that what a round gives depends on steps alone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from tandem.runtime.ray.line import Line
from tandem.runtime.ray.mailbox import Stretch

STRETCH = 16
"""Steps that several engines take before anybody looks at their answers: at 10 ms a step, what they
wait for each other and for the driver is a few percent, and a slot is empty for 80 ms on average.
"""

Call = Callable[..., Awaitable[Any]]
"""What the engine of a line says to a verb; None where it died or failed."""


class Pace:
    """Holds all engines between two stretches of steps; implements `rollout.door.Holds`.

    Takes a stretch of answers from every engine at work, gives them in the order of their steps,
    then of engines; waits for all of those engines, and while it is held; woken by requests and by
    `release`. It is off until it is held for the first time, and again once it is released with
    nothing left to answer; engines then go on by themselves.

    A single engine stops after every step that ended a request, as one in this process would.
    Several go on to the end of a stretch: most would be idle if they stopped at each other's
    answers.
    """

    def __init__(self, lines: Sequence[Line], call: Call) -> None:
        self._lines, self._call = lines, call
        self._stretch = STRETCH if len(lines) > 1 else None
        self.is_on = False
        self._may_go = asyncio.Event()
        self._turn = asyncio.Lock()  # engines get one call after another: calls overtake each other
        self._marching: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    def hold(self) -> None:
        """Takes no further stretch until `release`; requests may come and go."""
        self._may_go.clear()
        self._switch(True)

    def release(self) -> None:
        """Goes on after `hold`; nothing if it was not held."""
        self._may_go.set()
        if any(line.num_asked for line in self._lines):
            self.go()
        else:
            self._switch(False)

    def go(self) -> None:
        """Begins to march, if it is on and does not yet."""
        if self.is_on and (self._marching is None or self._marching.done()):
            self._marching = asyncio.get_running_loop().create_task(self._march())

    def look(self) -> None:
        """Has engines end what they are to end, and answers to it collected; if it is on."""
        if not self.is_on:
            return
        if self._turn.locked():
            for line in self._lines:
                if line.is_alive:
                    line.handle.sample.remote("halt")
        self._looking = asyncio.get_running_loop().create_task(self._advance(0))

    async def _march(self) -> None:
        while any(line.num_asked for line in self._lines):
            if not self._may_go.is_set():
                await self._may_go.wait()
                continue
            if not any(line.is_alive for line in self._lines):
                return  # who brings one again calls `go`
            await self._advance(self._stretch)
            await asyncio.sleep(0)  # who got an answer holds before the next stretch

    async def _advance(self, most: int | None) -> None:
        """So many steps of every engine at work; up to its first answer if None."""
        async with self._turn:
            lines = [line for line in self._lines if line.is_alive and line.num_asked]
            calls = (self._call(line, "advance", most, *line.fetched()) for line in lines)
            stretches: Iterable[Stretch | None] = await asyncio.gather(*calls)
            answered = [
                (step, place, answers)
                for place, stretch in enumerate(stretches)
                for step, answers in stretch or ()
            ]
            for _, place, answers in sorted(answered, key=lambda one: one[:2]):
                lines[place].deliver(answers)

    def _switch(self, is_on: bool) -> None:
        self.is_on = is_on
        for line in self._lines:
            line.is_paced = is_on
            line.flush()
