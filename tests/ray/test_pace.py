"""Engines that keep pace, played by lists of lengths: no process, no clock."""

import asyncio

import numpy as np

from tandem.runtime.ray.line import Asked, Line
from tandem.runtime.ray.pace import STRETCH, Pace
from tandem.types import Completion, Ending, Request, SampleKey, Sampling


def completion(id, ending=Ending.STOP):
    none = np.zeros(0, np.int32)
    return Completion(
        id=id, tokens_C=none, logprobs_C=none.astype(np.float32), version_C=none, ending=ending
    )


class Played:
    """An engine whose requests end after as many steps as their id says (`a-12`: 12)."""

    def __init__(self):
        self.left, self.num_calls, self.is_late = {}, 0, asyncio.Event()
        self.is_late.set()

    async def advance(self, most, requests, ids):
        self.num_calls += 1
        self.left |= {one.id: int(one.id.split("-")[1]) for one in requests}
        answered = [(0, [(id, completion(id, Ending.ABORT)) for id in ids if id in self.left])]
        for id in ids:
            self.left.pop(id, None)
        step = 0
        while self.left and step != most:
            step += 1
            await asyncio.sleep(0)
            self.left = {id: count - 1 for id, count in self.left.items()}
            done = [id for id, count in self.left.items() if count == 0]
            if done:
                answered.append((step, [(id, completion(id)) for id in done]))
                self.left = {id: count for id, count in self.left.items() if count}
                if most is None:
                    break
        await self.is_late.wait()
        return answered


class Fleet:
    """Lines to played engines, and the order in which their requests were answered."""

    def __init__(self, count):
        self.engines = [Played() for _ in range(count)]
        self.lines = [
            Line(str(n), None, has_rank=False, shares=False, gives=True) for n in range(count)
        ]
        self.pace = Pace(self.lines, self._call)
        self.order = []

    async def _call(self, line, verb, *arguments):
        assert verb == "advance"
        return await self.engines[self.lines.index(line)].advance(*arguments)

    async def _never(self, line):
        raise AssertionError("a line that is paced is not collected from")

    def ask(self, place, id):
        sampling, key = Sampling(max_new_tokens=99), SampleKey(seed=0, prompt=0, sample=0)
        request = Request(id=id, tokens_T=np.zeros(1, np.int32), sampling=sampling, key=key)
        asked = Asked(request, asyncio.get_running_loop().create_future())
        asked.future.add_done_callback(lambda _: self.order.append(id))
        self.lines[place].send(asked, self._never)
        self.pace.go()
        return asked.future


async def settle():
    for _ in range(50):
        await asyncio.sleep(0)


async def test_answers_count_by_their_steps_whichever_engine_is_late():
    fleet = Fleet(2)
    fleet.pace.hold()
    futures = [fleet.ask(0, "a-9"), fleet.ask(0, "b-5"), fleet.ask(1, "c-5"), fleet.ask(1, "d-2")]
    fleet.engines[1].is_late.clear()
    fleet.pace.release()
    await settle()
    assert fleet.order == []
    fleet.engines[1].is_late.set()
    await asyncio.wait(futures)
    assert fleet.order == ["d-2", "b-5", "c-5", "a-9"]


async def test_a_held_fleet_takes_no_step_and_a_released_one_a_stretch_at_a_time():
    fleet = Fleet(2)
    fleet.pace.hold()
    future = fleet.ask(0, f"a-{STRETCH + 1}")
    await settle()
    assert fleet.engines[0].num_calls == 0
    fleet.pace.release()
    await future
    assert fleet.engines[0].num_calls == 2 and fleet.pace.is_on
    fleet.pace.release()
    assert not fleet.pace.is_on


async def test_an_only_engine_stops_at_every_step_that_ends_something():
    fleet = Fleet(1)
    fleet.pace.hold()
    first, second = fleet.ask(0, "a-3"), fleet.ask(0, "b-40")
    first.add_done_callback(lambda _: fleet.pace.hold())
    fleet.pace.release()
    await first
    await settle()
    assert fleet.engines[0].left == {"b-40": 37}
    fleet.pace.release()
    await second


async def test_what_is_ended_under_way_is_answered_with_what_was_written():
    fleet = Fleet(2)
    fleet.pace.hold()
    futures = [fleet.ask(0, "a-900"), fleet.ask(1, "b-900")]
    fleet.pace.release()
    await asyncio.sleep(0)
    fleet.pace.hold()
    for line in fleet.lines:
        line.is_alive, line.handle = True, Deaf()
        line.end(None)
    fleet.pace.look()
    done, _ = await asyncio.wait(futures)
    assert {one.result().ending for one in done} == {Ending.ABORT}
    fleet.pace.release()
    assert not fleet.pace.is_on


class Deaf:
    """A handle whose calls go nowhere: an end that is only told by the next `advance`."""

    @property
    def sample(self):
        return self

    def remote(self, *arguments):
        assert arguments == ("halt",)
