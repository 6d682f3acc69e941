"""The engine as its contract says: futures, abort, update, sleep, errors."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

from tandem.checkpoint.names import to_hugging_face
from tandem.contracts import Engine
from tandem.errors import EngineError, SyncError
from tandem.types import Ending, Weights


def tiny_copy(decoder):
    """Another decoder of the same shape with weights of its own."""
    copy = type(decoder)(decoder.shape, torch.float32, "cpu")
    copy.init_random(5)
    return copy


async def steps(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_futures_resolve_with_their_own_completions(engine_of, ask):
    engine: Engine = engine_of()
    requests = [ask(n, max_new_tokens=3 + n) for n in range(5)]
    done = await asyncio.gather(*(engine.add(request) for request in requests))
    assert [completion.id for completion in done] == [request.id for request in requests]
    assert [len(completion.tokens_C) for completion in done] == [3, 4, 5, 6, 7]


async def test_requests_added_before_the_first_step_are_seen_by_it(engine_of, ask):
    engine = engine_of()

    async def one(sample):
        return await engine.add(ask(1, sample, length=29))

    await asyncio.gather(*(one(sample) for sample in range(8)))
    assert engine.stats().num_prefill_tokens == 29


async def test_other_tasks_run_between_steps(engine_of, ask):
    engine = engine_of()
    future = engine.add(ask(max_new_tokens=30))
    seen = set()
    while not future.done():
        await asyncio.sleep(0)
        seen.add(engine.stats().num_generated_tokens)
    assert len(seen) > 20


@pytest.mark.parametrize("is_late", [False, True])
async def test_abort_gives_partial_tokens_at_once_and_they_can_be_continued(
    engine_of, ask, is_late
):
    requests = [ask(n, max_new_tokens=30) for n in range(4)]
    whole = engine_of().generate(requests)
    engine = engine_of(engine_max_running=3, is_late=is_late)
    futures = [engine.add(request) for request in requests]
    await steps(9)
    generated = engine.stats().num_generated_tokens
    await engine.abort(["0-0", "nobody"])
    assert futures[0].done()
    assert not futures[1].done()
    await engine.abort()
    partial = await asyncio.gather(*futures)
    assert {completion.ending for completion in partial} == {Ending.ABORT}
    assert sum(len(completion.tokens_C) for completion in partial) >= generated > 9
    assert len(partial[3].tokens_C) == 0
    rest = [
        dataclasses.replace(
            request,
            tokens_T=np.concatenate([request.tokens_T, part.tokens_C]),
            sampling=dataclasses.replace(request.sampling, max_new_tokens=30 - len(part.tokens_C)),
        )
        for request, part in zip(requests, partial, strict=True)
    ]
    finished = await asyncio.gather(*(engine.add(request) for request in rest))
    for part, end, expected in zip(partial, finished, whole, strict=True):
        joined = np.concatenate([part.tokens_C, end.tokens_C])
        assert joined.tolist() == expected.tokens_C.tolist()
    assert engine.stats().num_free_blocks == engine.stats().num_cache_blocks


async def test_a_cancelled_future_ends_its_request(engine_of, ask):
    engine = engine_of()
    dropped, kept = engine.add(ask(0, max_new_tokens=200)), engine.add(ask(1))
    await steps(3)
    dropped.cancel()
    await kept
    await steps(2)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_generated_tokens < 100


def test_a_loop_that_ends_leaves_an_engine_for_the_next(engine_of, ask):
    engine = engine_of()

    async def leave_early():
        engine.add(ask(0, max_new_tokens=200))
        await steps(3)

    async def stay():
        return await engine.add(ask(1))

    asyncio.run(leave_early())
    assert engine.stats().num_running == 0
    assert len(asyncio.run(stay()).tokens_C) == 20


async def test_an_update_changes_the_version_of_later_tokens_and_forgets_prefixes(engine_of, ask):
    engine = engine_of()
    first = await engine.add(ask(1, 0, length=29))
    assert set(first.version_C) == {0}
    running = engine.add(ask(2, max_new_tokens=30))
    await steps(6)
    engine.update(Weights(version=3, named=(), is_shared=True))
    after = await engine.add(ask(1, 1, length=29))
    assert after.num_cached == 0
    assert set(after.version_C) == {3}
    mixed = (await running).version_C
    assert set(mixed.tolist()) == {0, 3}
    assert sorted(mixed.tolist()) == mixed.tolist()
    assert engine.stats().version == 3


def test_shared_weights_are_the_trainers_tensors(engine_of, ask, decoder):
    mine = tiny_copy(decoder)
    engine = engine_of(decoder=mine)
    before = engine.state_digest()
    (old,) = engine.generate([ask(1)])
    with torch.no_grad():
        mine.layers[0].down.weight.mul_(40)
    engine.update(Weights(version=1, named=(), is_shared=True))
    (new,) = engine.generate([ask(1)])
    assert new.tokens_C.tolist() != old.tokens_C.tolist()
    after = engine.state_digest()
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]
    assert all(parameter.requires_grad for parameter in mine.parameters())


def test_sent_weights_are_copied_by_name(engine_of, ask, decoder):
    mine = tiny_copy(decoder)
    engine, source = engine_of(decoder=mine), engine_of()
    named = list(to_hugging_face(decoder.shape, decoder.named_parameters()))
    engine.update(Weights(version=2, named=iter(named[::-1])))
    assert engine.state_digest() == source.state_digest()
    assert engine.generate([ask(1)])[0].tokens_C.tolist() == (
        source.generate([ask(1)])[0].tokens_C.tolist()
    )


@pytest.mark.parametrize("fault", ["lacks", "of size", "not a parameter", "did not come"])
def test_weights_of_another_model_are_an_error(engine_of, decoder, fault):
    named = dict(to_hugging_face(decoder.shape, decoder.named_parameters()))
    if fault == "lacks":
        del named["model.norm.weight"]
    elif fault == "of size":
        named["model.norm.weight"] = torch.zeros(3)
    elif fault == "not a parameter":
        named["model.other.weight"] = torch.zeros(3)
    else:
        del named["model.layers.1.self_attn.k_proj.weight"]
    engine = engine_of(decoder=tiny_copy(decoder))
    with pytest.raises(SyncError, match=fault):
        engine.update(Weights(version=2, named=iter(named.items())))


def test_sleep_gives_the_cache_back_and_wake_goes_on(engine_of, ask):
    engine = engine_of()
    (before,) = engine.generate([ask(1)])
    engine.sleep()
    assert engine.stats().is_asleep
    with pytest.raises(EngineError, match="sleeps"):
        engine.generate([ask(1)])
    engine.canary(np.arange(5))
    engine.wake()
    (after,) = engine.generate([ask(1)])
    assert after.tokens_C.tolist() == before.tokens_C.tolist()
    assert after.num_cached == 0


async def test_sleep_is_refused_while_requests_run(engine_of, ask):
    engine = engine_of()
    future = engine.add(ask(1))
    with pytest.raises(EngineError, match="abort them first"):
        engine.sleep()
    await future
    engine.sleep()


@pytest.mark.parametrize(
    ("sampling", "tokens", "what"),
    [
        ({"max_new_tokens": 600}, [1], "512 positions; ask for at most 511"),
        ({"max_new_tokens": 300}, [1] * 100, "the whole cache holds 256"),
        ({}, [], "no tokens"),
        ({}, [61], "0 to 60"),
        ({}, [-1], "0 to 60"),
        ({"top_p": 0.0}, [1], "top_p 0.0"),
        ({"temperature": -1.0}, [1], "temperature -1.0"),
        ({"stop": ("x",)}, [1], "without a tokenizer"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_what_can_never_be_served_is_refused_at_once(engine_of, ask, sampling, tokens, what):
    engine = engine_of(engine_cache_tokens=256)
    with pytest.raises(EngineError, match=what):
        engine.add(ask(tokens=tokens, **sampling))
    assert engine.stats().num_waiting == 0


async def test_an_id_can_be_live_only_once(engine_of, ask):
    engine = engine_of()
    first = engine.add(ask(1))
    with pytest.raises(EngineError, match="its own id"):
        engine.add(ask(1))
    await first
    await engine.add(ask(1))


class Breaks(torch.nn.Module):
    """A layer that raises when it is told to."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.is_broken = inner, False

    def forward(self, *state):
        if self.is_broken:
            raise RuntimeError("the device is on fire")
        return self.inner(*state)


async def test_a_step_that_raises_fails_its_requests_and_leaves_a_usable_engine(
    engine_of, ask, decoder
):
    mine = tiny_copy(decoder)
    part = mine.layers[1] = Breaks(mine.layers[1])
    engine = engine_of(decoder=mine)
    expected = (await engine.add(ask(1))).tokens_C.tolist()
    futures = [engine.add(ask(n, max_new_tokens=50)) for n in range(3)]
    await steps(5)
    part.is_broken = True
    failures = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(failure, EngineError) for failure in failures)
    assert "RuntimeError: the device is on fire" in str(failures[0])
    part.is_broken = False
    assert (await engine.add(ask(1))).tokens_C.tolist() == expected
    assert engine.stats().num_free_blocks == engine.stats().num_cache_blocks


async def test_closing_fails_what_is_live_and_refuses_what_comes_later(engine_of, ask):
    engine = engine_of()
    future = engine.add(ask(1))
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        await future
    with pytest.raises(EngineError, match="closed"):
        engine.add(ask(2))


def test_the_canary_disturbs_nothing_and_equals_what_sampling_reports(engine_of, ask):
    engine = engine_of()
    request = ask(1, temperature=1.0)
    (done,) = engine.generate([request])
    whole_T = np.concatenate([request.tokens_T, done.tokens_C])
    stats = engine.stats()
    logprobs_T = engine.canary(whole_T)
    assert engine.stats() == stats
    assert logprobs_T.shape == whole_T.shape
    assert logprobs_T[0] == 0
    np.testing.assert_allclose(logprobs_T[len(request.tokens_T) :], done.logprobs_C, atol=1e-4)
