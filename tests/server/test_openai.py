"""The official client finds what it expects, and a session holds what was sampled."""

import json
from contextlib import asynccontextmanager

import numpy as np
import openai
import pytest

from tandem.server.messages import reply_message
from tandem.types import Prompt

ASK = [{"role": "user", "content": "guess a number between 1 and 9"}]
CALL = 'Let me see. <tool_call>\n{"name": "look", "arguments": {"at": 3}}\n</tool_call>'


@pytest.fixture
def client_to(door_to):
    @asynccontextmanager
    async def opened(api_key="none", **settings):
        async with door_to(**settings) as door:
            url = f"{door.server.url}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0) as client:
                yield door, client

    return opened


async def test_a_chat_reply_has_text_logprobs_and_usage(client_to, model):
    async with client_to() as (_, client):
        got = await client.chat.completions.create(
            model="tiny",
            messages=ASK,
            max_tokens=8,
            seed=3,
            logprobs=True,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
    choice = got.choices[0]
    prompt = model.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert choice.prompt_token_ids == model.tokens(prompt)
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert choice.message.content == model.tokenizer.decode(
        choice.token_ids, skip_special_tokens=True
    )
    assert len(choice.logprobs.content) == len(choice.token_ids) == 8
    assert got.usage.completion_tokens == 8
    assert got.usage.prompt_tokens == len(choice.prompt_token_ids)


async def test_several_choices_differ_and_a_seed_repeats_them(client_to):
    async with client_to() as (_, client):

        async def ask():
            got = await client.chat.completions.create(
                model="tiny", messages=ASK, max_completion_tokens=8, seed=3, n=3
            )
            return [choice.message.content for choice in got.choices]

        first, second = await ask(), await ask()
    assert first == second
    assert len(set(first)) == 3


async def test_a_chat_stream_adds_up_to_the_reply(client_to):
    settings = {"model": "tiny", "messages": ASK, "max_tokens": 30, "seed": 3, "n": 2}
    async with client_to(stream_interval=4) as (_, client):
        whole = await client.chat.completions.create(**settings)
        texts, ends, usage = ["", ""], [None, None], None
        stream = await client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_text_completions_take_text_and_ids(client_to, model):
    async with client_to(stream_interval=4) as (_, client):
        settings = {"model": "tiny", "max_tokens": 9, "seed": 1, "logprobs": 1}
        by_text = await client.completions.create(prompt="higher", **settings)
        by_ids = await client.completions.create(prompt=model.tokens("higher"), **settings)
        both = await client.completions.create(prompt=["higher", "lower"], n=2, **settings)
        stream = await client.completions.create(prompt="higher", stream=True, **settings)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert by_text.choices[0].text == by_ids.choices[0].text == streamed
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert len(by_text.choices[0].logprobs.token_logprobs) == by_text.usage.completion_tokens


async def test_a_stop_string_ends_the_text_and_never_shows(client_to):
    settings = {"model": "tiny", "messages": ASK, "max_tokens": 60, "seed": 11}
    async with client_to(stream_interval=1) as (_, client):
        free = (await client.chat.completions.create(**settings)).choices[0].message.content
        stop = free[20:23]
        got = await client.chat.completions.create(**settings, stop=stop)
        assert got.choices[0].message.content == free[: free.index(stop)]
        assert got.choices[0].finish_reason == "stop"
        stream = await client.chat.completions.create(**settings, stop=[stop], stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == free[: free.index(stop)]


@pytest.mark.parametrize(
    "extra",
    [
        {"frequency_penalty": 1.0},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True, "top_logprobs": 3},
        {"max_tokens": 10**6},
        {"tool_choice": "required"},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"extra_body": {"telepathy": True}},
    ],
)
async def test_the_client_raises_bad_request_for_what_cannot_be_done(client_to, extra):
    async with client_to() as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{"model": "tiny", "messages": ASK, **extra})
        assert caught.value.body["message"]


async def test_content_in_parts_is_joined(client_to, model):
    parts = [
        {"type": "text", "text": "guess a number"},
        {"type": "text", "text": " between 1 and 9"},
    ]
    async with client_to() as (_, client):
        settings = {"model": "tiny", "max_tokens": 8, "seed": 3}
        whole = await client.chat.completions.create(messages=ASK, **settings)
        joined = await client.chat.completions.create(
            messages=[{"role": "user", "content": parts}], **settings
        )
    assert whole.choices[0].message.content == joined.choices[0].message.content


def test_calls_of_tools_are_read_where_tools_were_offered():
    message = reply_message(CALL, has_tools=True, call_id="x")
    assert message["content"] == "Let me see."
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": 3}'}
    assert reply_message(CALL, has_tools=False, call_id="x")["content"] == CALL
    broken = "<tool_call>{not json}</tool_call>"
    assert reply_message(broken, has_tools=True, call_id="x") == {
        "role": "assistant",
        "content": broken,
    }


async def test_a_scripted_agent_is_recorded_as_it_was_sampled(client_to, model, logprobs_of):
    """Three turns over HTTP, one sample; its log-probs are those of a fresh forward."""
    async with client_to(api_key="session:game-1") as (door, client):
        messages, heard = [*ASK], []
        for reply in ("higher", "lower", None):
            got = await client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=12, logprobs=True
            )
            choice = got.choices[0]
            heard += [one.logprob for one in choice.logprobs.content]
            messages.append(choice.message)  # as agents do: the client's own object
            if reply:
                messages.append({"role": "user", "content": reply})
        (sample,) = door.recorder.samples_of(
            "game-1", prompt_of(model), index=6, position=2, decode=model.tokenizer.decode
        )
    assert (sample.index, sample.rollout, sample.position) == (6, 6, 2)
    assert sample.metadata["recorded"] == {"branch": 0, "turns": 3, "realigned_tokens": 0}
    assert sample.logprobs_T[sample.sampled_T].tolist() == heard
    assert set(sample.version_T[sample.sampled_T]) == {3}
    assert set(sample.version_T[~sample.sampled_T]) == {-1}
    fresh_T = logprobs_of(sample.tokens_T)
    assert np.abs(fresh_T - sample.logprobs_T)[sample.sampled_T].max() < 1e-4
    text = model.tokenizer.decode(sample.tokens_T)
    assert text.count("<|im_start|>assistant\n") == 3
    for said in ("higher", "lower"):
        assert f"<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n" in text


async def test_a_session_is_read_and_closed_over_http(client_to):
    async with client_to() as (door, client):
        key = {"seed": 1, "prompt": 2, "sample": 3, "temperature": 0.5, "max_new_tokens": 10}
        async with door.client.put("/sessions/s", json=key) as response:
            assert response.status == 201
        async with door.client.put("/sessions/s", json=key) as response:
            assert response.status == 409
        for _ in range(2):
            await client.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=8, user="s", extra_body={"ignore_eos": True}
            )
        got = await door.get("/sessions/s")
        assert len(got["samples"]) == 2  # the same prompt again is another answer, not a turn
        assert sum(sum(sample["sampled"]) for sample in got["samples"]) == 10
        json.dumps(got)
        async with door.client.delete("/sessions/s") as response:
            assert response.status == 200
        await door.get("/sessions/s", status=404)


def prompt_of(model):
    text = model.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    tokens_T = np.asarray(model.tokens(text), np.int32)
    return Prompt(index=2, tokens_T=tokens_T, text=text, content=ASK)
