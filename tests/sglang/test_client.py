"""The engine over servers that answer, stumble, and die."""

import asyncio

import numpy as np
import pytest

from tandem.engine.sglang.router import StockRouter
from tandem.engine.sglang.wire import seed_of
from tandem.errors import EngineError
from tandem.types import Ending, SampleKey


async def until(holds):
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to hold")


async def test_a_request_comes_back_with_tokens_logprobs_and_versions(one, ways):
    state, engine = one
    done = await engine.add(ways.request(stop_token_ids=(110,), temperature=0.7))
    assert done.tokens_C.tolist() == [105, 106, 107, 108, 109, 110]
    assert done.logprobs_C.tolist() == [ways.fake.logprob_of(0)] * 6
    assert done.version_C.tolist() == [0] * 6
    assert (done.ending, done.matched) == (Ending.STOP, 110)
    (body,) = state.asked
    assert body["input_ids"] == [0, 1, 2, 3, 4] and body["return_logprob"] is True
    params = body["sampling_params"]
    assert (params["temperature"], params["max_new_tokens"]) == (0.7, 20)
    assert params["sampling_seed"] == seed_of(SampleKey(seed=1, prompt=2, sample=3))


async def test_own_stop_tokens_end_a_request_that_ignores_the_models(one, ways):
    _, engine = one
    done = await engine.add(ways.request(stop_token_ids=(110, 107), ignore_eos=True))
    assert done.tokens_C.tolist() == [105, 106, 107]
    assert (done.ending, done.matched) == (Ending.STOP, 107)
    assert len(done.logprobs_C) == len(done.version_C) == 3


def test_seeds_differ_by_sample_and_fit_a_server():
    seeds = {seed_of(SampleKey(seed=s, prompt=p, sample=i)) for s in (1, 2) for p in range(20)
             for i in range(8)}  # fmt: skip
    assert len(seeds) == 2 * 20 * 8
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("fault", ["status 503", "status 500", "cut", "half"])
async def test_an_answer_that_does_not_come_whole_is_asked_for_again(fault, one, ways):
    state, engine = one
    state.faults = [fault]
    done = await engine.add(ways.request())
    assert ways.is_whole(done) and done.ending is Ending.LENGTH
    first, second = state.asked
    assert first["rid"] != second["rid"] and first["input_ids"] == second["input_ids"]


async def test_a_lost_request_is_ended_where_it_may_still_run(one, ways):
    state, engine = one
    state.faults = ["cut"]
    await engine.add(ways.request())
    await until(lambda: state.asked[0]["rid"] in state.aborted)
    assert state.asked[1]["rid"] not in state.aborted


async def test_an_answer_that_takes_too_long_is_asked_for_again(hosted, engine_over, ways):
    server = hosted()
    engine = engine_over(server.url, timeout_s=0.5)
    server.state.faults = ["hang 1.0"]
    assert ways.is_whole(await engine.add(ways.request()))
    assert len(server.state.asked) == 2


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ("status 400", "told to"),
        ("text {nonsense", "no JSON"),
        ('text {"output_ids": [1]}', "something else than a completion"),
        ('text {"output_ids": [1], "meta_info": {"finish_reason": {"type": "length"}}}',
         "without log-probs"),
        ('text {"output_ids": [1], "meta_info": {"finish_reason": {"type": "length"}, '
         '"output_token_logprobs": [[NaN, 1, null]]}}', "no numbers"),
    ],
)  # fmt: skip
async def test_what_asking_again_cannot_mend_is_an_error(fault, wanted, one, ways):
    state, engine = one
    state.faults = [fault]
    with pytest.raises(EngineError, match=wanted):
        await engine.add(ways.request())
    assert len(state.asked) == 1
    assert ways.is_whole(await engine.add(ways.request("b")))  # the engine goes on


async def test_a_request_is_not_asked_again_for_ever(one, ways):
    state, engine = one
    state.faults = ["cut"] * 100
    with pytest.raises(EngineError, match="no whole answer came"):
        await engine.add(ways.request())
    assert len(state.asked) == 7


async def test_a_server_that_is_busy_for_ever_is_an_error(hosted, engine_over, ways):
    server = hosted()
    engine = engine_over(server.url, patience_s=0.001)
    server.state.faults = ["status 503"] * 100
    with pytest.raises(EngineError, match=r"put off 60 times.*HTTP 503"):
        await engine.add(ways.request())
    assert len(server.state.asked) == 61


async def test_requests_that_a_server_ends_unasked_are_not_begun_for_ever(one, ways):
    state, engine = one
    empty = '{"output_ids": [], "meta_info": {"finish_reason": {"type": "abort"}}}'
    state.faults = [f"text {empty}"]
    assert ways.is_whole(await engine.add(ways.request()))
    state.faults = [f"text {empty}"] * 100
    with pytest.raises(EngineError, match="without having been asked to"):
        await engine.add(ways.request("b"))
    assert len(state.asked) == 2 + 7


async def test_a_server_that_does_not_end_what_it_is_told_to_is_named(hosted, engine_over, ways):
    server = hosted()
    engine = engine_over(server.url, ending_s=0.5)
    future = engine.add(ways.request(limit=5000))
    await until(lambda: server.state.running)
    server.state.ignores_aborts = True
    with pytest.raises(EngineError, match=r"did not end within 0.5 s.*server 0"):
        await engine.abort()
    future.cancel()


async def test_abort_keeps_what_was_written_and_the_rest_goes_on(one, ways):
    state, engine = one
    chosen, other = engine.add(ways.request("a", limit=5000)), engine.add(ways.request("b"))
    await until(lambda: len(state.running) == 2)
    await asyncio.sleep(0.05)
    await engine.abort(["a"])
    done = await chosen
    assert done.ending is Ending.ABORT
    assert ways.is_whole(done, limit=len(done.tokens_C)) and 0 < len(done.tokens_C) < 5000
    assert ways.is_whole(await other)


async def test_abort_of_all_leaves_nothing_at_the_server(one, ways):
    state, engine = one
    futures = [engine.add(ways.request(str(n), limit=5000)) for n in range(8)]
    await engine.abort()  # some are on their way
    done = await asyncio.gather(*futures)
    assert {one.ending for one in done} == {Ending.ABORT}
    assert not state.running
    assert (engine.stats().num_running, engine.stats().num_waiting) == (0, 0)


async def test_cancelling_the_future_ends_the_request_at_the_server(one, ways):
    state, engine = one
    future = engine.add(ways.request(limit=5000))
    await until(lambda: state.running)
    future.cancel()
    await until(lambda: not state.running)


async def test_new_weights_cut_a_request_in_parts_that_join(one, ways):
    state, engine = one
    futures = [engine.add(ways.request(str(n), limit=200)) for n in range(4)]
    await until(lambda: len(state.running) == 4)
    await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.update, ways.weights(1))
    for done in await asyncio.gather(*futures):
        assert ways.is_whole(done, limit=200) and done.ending is Ending.LENGTH
        assert sorted(set(done.version_C.tolist())) == [0, 1]
        assert (np.diff(done.version_C) >= 0).all()
        wanted = [ways.fake.logprob_of(version) for version in done.version_C.tolist()]
        assert done.logprobs_C.tolist() == wanted  # what the server had when it sampled them


async def test_a_request_that_waits_for_new_weights_can_be_aborted(one, ways):
    _, engine = one
    engine.fleet.line.run(engine.fleet.gate.change(is_open=False))
    future = engine.add(ways.request())
    await until(lambda: engine.stats().num_waiting == 1)
    await engine.abort()
    done = await future
    assert done.ending is Ending.ABORT and len(done.tokens_C) == 0


async def test_a_server_with_other_weights_is_an_error(one, ways):
    state, engine = one
    state.version = "7"
    with pytest.raises(EngineError, match="sampled with weight version 7, not 0"):
        await engine.add(ways.request())


async def test_samples_of_a_group_share_a_server_and_groups_spread(hosted, engine_over, ways):
    servers = [hosted(), hosted()]
    engine = engine_over(*(server.url for server in servers))
    futures = [
        engine.add(ways.request(f"{group}-{n}", group=f"g{group}"))
        for group in range(4)
        for n in range(8)
    ]
    await asyncio.gather(*futures)
    groups = [{body["rid"].split("-")[0] for body in server.state.asked} for server in servers]
    assert not groups[0] & groups[1]
    assert [len(server.state.asked) for server in servers] == [16, 16]


async def test_a_router_gets_the_requests_and_servers_the_calls_that_end_them(
    hosted, engine_over, ways
):
    servers, router = [hosted(), hosted()], hosted(ways.fake.FakeRouter())
    engine = engine_over(
        *(server.url for server in servers), router=StockRouter(router.url, policy="manual")
    )
    futures = [
        engine.add(ways.request(f"{group}-{n}", limit=500, group=f"g{group}"))
        for group in range(2)
        for n in range(4)
    ]
    await until(lambda: sum(len(server.state.running) for server in servers) == 8)
    assert sorted(router.state.keys) == ["g0"] * 4 + ["g1"] * 4
    assert sorted(router.state.workers.values()) == sorted(server.url for server in servers)
    await engine.abort(["0-0"])  # the router alone knows where it is
    assert (await futures[0]).ending is Ending.ABORT
    await asyncio.to_thread(engine.update, ways.weights(1))
    for done in await asyncio.gather(*futures[1:]):
        assert ways.is_whole(done, limit=500) and set(done.version_C.tolist()) == {0, 1}


async def test_a_closed_engine_takes_nothing(one, ways):
    _, engine = one
    engine.close()
    with pytest.raises(EngineError, match="after the engine was closed"):
        engine.add(ways.request())
