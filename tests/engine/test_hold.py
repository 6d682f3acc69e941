"""A held engine takes no step; requests may come and go meanwhile."""

import asyncio

from tandem.types import Ending


async def steps(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_held_engine_writes_nothing_until_it_is_released(engine_of, ask):
    engine = engine_of()
    future = engine.add(ask(max_new_tokens=5))
    await steps(2)
    engine.hold()
    before = engine.stats().num_generated_tokens
    late = engine.add(ask(1, max_new_tokens=5))
    await steps(20)
    assert engine.stats().num_generated_tokens == before and not future.done()
    engine.release()
    assert len((await future).tokens_C) == len((await late).tokens_C) == 5


async def test_hold_in_a_completions_callback_acts_before_the_next_step(engine_of, ask):
    engine = engine_of(is_late=False)
    short, long = engine.add(ask(0, max_new_tokens=3)), engine.add(ask(1, max_new_tokens=30))
    short.add_done_callback(lambda _: engine.hold())
    await short
    await steps(20)
    assert engine.stats().num_generated_tokens == 6 and not long.done()
    engine.release()
    await long


async def test_abort_ends_what_a_held_engine_has(engine_of, ask):
    engine = engine_of()
    future = engine.add(ask(max_new_tokens=30))
    await steps(5)
    engine.hold()
    await engine.abort()
    assert (await future).ending is Ending.ABORT
    engine.release()
    await steps(5)
    assert len((await engine.add(ask(1, max_new_tokens=4))).tokens_C) == 4
