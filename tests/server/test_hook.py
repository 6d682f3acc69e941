"""An agent of the official client as a generate function."""

import asyncio
from dataclasses import replace

import numpy as np
import openai
import pytest

from tandem.errors import EngineError
from tandem.hooks.asking import Line, connected
from tandem.hooks.view import DialectSample, DialectStatus
from tandem.server import TrainedAgent
from tandem.types import Completion, Ending, Request, SampleKey

ASK = [{"role": "user", "content": "guess a number between 1 and 9"}]
PARAMS = {"max_new_tokens": 40, "temperature": 0.8, "top_p": 1.0, "top_k": -1}


async def play(base_url, api_key, sample):
    """Three turns, whatever is said; the reward is the length of the last reply."""
    messages = [*ASK]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
        for hint in ("higher", "lower", "that was it"):
            got = await client.chat.completions.create(
                model="any", messages=messages, temperature=0, seed=1, max_tokens=10
            )
            messages.append(got.choices[0].message)
            messages.append({"role": "user", "content": hint})
    return float(len(messages[-2].content))


@pytest.fixture
async def line_of(model):
    """Makes lines to a fresh engine, as the rollout stage does around a generate function."""
    engine = model.engine()
    asked = []

    def make(number=0, cut_off_after=None):
        async def ask(tokens, sampling, *, sample, branch):
            asked.append((len(tokens), sampling, branch))
            if cut_off_after is not None and len(asked) > cut_off_after:
                nothing = np.zeros(0, np.int32)
                return Completion(
                    id="",
                    tokens_C=nothing,
                    logprobs_C=nothing.astype(np.float32),
                    version_C=nothing,
                    ending=Ending.ABORT,
                )
            request = Request(
                id=f"{number}-{len(asked)}",
                tokens_T=np.asarray(tokens, np.int32),
                sampling=replace(sampling, ignore_eos=False),
                key=SampleKey(seed=1, prompt=0, sample=number + (branch << 32)),
            )
            return await engine.add(request)

        return Line(ask=ask, tokenizer=model.tokenizer)

    make.asked = asked
    yield make
    engine.close()


def sample_of(model):
    text = model.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    return DialectSample(index=3, prompt=text, tokens=model.tokens(text), metadata={"kept": 1})


async def called(agent, line, sample):
    with connected(line):
        return await agent(None, sample, PARAMS)


async def test_an_agents_turns_are_one_sample_with_its_logprobs(model, line_of, logprobs_of):
    sample = sample_of(model)
    got = await called(TrainedAgent(play), line_of(), sample)
    assert isinstance(got.reward, float)
    assert got.tokens[: len(sample.tokens)] == sample.tokens
    count = got.response_length
    assert len(got.tokens) == len(sample.tokens) + count
    assert len(got.loss_mask) == len(got.rollout_log_probs) == count
    fresh_T = logprobs_of(got.tokens, temperature=0.8)[-count:]
    mask_T = np.asarray(got.loss_mask, bool)
    assert np.abs(fresh_T - got.rollout_log_probs)[mask_T].max() < 1e-4
    assert 3 <= mask_T.sum() <= 30
    assert got.metadata == {"kept": 1, "recorded": {"turns": 3, "realigned_tokens": 0}}
    assert got.weight_versions == ["3"]


async def test_the_rollouts_settings_win_over_the_agents(model, line_of):
    await called(TrainedAgent(play), line_of(), sample_of(model))
    assert {sampling.temperature for _, sampling, _ in line_of.asked} == {0.8}
    assert {branch for _, _, branch in line_of.asked} == {0}
    assert [sampling.max_new_tokens for _, sampling, _ in line_of.asked] == [10, 10, 10]


async def test_samples_of_a_group_differ_though_the_agent_sends_one_seed(model, line_of):
    agent = TrainedAgent(play)
    got = await asyncio.gather(
        *(called(agent, line_of(number), sample_of(model)) for number in range(4))
    )
    assert len({tuple(view.tokens) for view in got}) > 1


async def test_an_agent_that_starts_over_gives_several_samples_of_one_reward(model, line_of):
    async def twice(base_url, api_key, sample):
        async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
            for _ in range(2):
                await client.chat.completions.create(model="any", messages=ASK, max_tokens=6)
        return 0.5

    views = await called(TrainedAgent(twice), line_of(), sample_of(model))
    assert [view.reward for view in views] == [0.5, 0.5]
    assert views[0].tokens != views[1].tokens
    assert all(sum(view.loss_mask) > 0 for view in views)


async def test_the_end_of_a_round_cancels_the_agent_and_its_sample_begins_again(model, line_of):
    went_on = []

    async def patient(base_url, api_key, sample):
        await play(base_url, api_key, sample)
        went_on.append(sample)

    sample = sample_of(model)
    got = await called(TrainedAgent(patient), line_of(cut_off_after=1), sample)
    assert got.status is DialectStatus.ABORTED
    assert (got.tokens, got.response_length) == (sample.tokens, 0)
    assert not went_on


async def test_an_agent_that_never_asked_is_a_failure(model, line_of):
    async def silent(base_url, api_key, sample):
        return 1.0

    with pytest.raises(EngineError, match="without having asked"):
        await called(TrainedAgent(silent), line_of(), sample_of(model))


async def test_an_agents_own_fault_comes_through_as_it_is(model, line_of):
    async def broken(base_url, api_key, sample):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        await called(TrainedAgent(broken), line_of(), sample_of(model))
