"""`/generate` speaks as SGLang does, and gives what the engine sampled."""

import asyncio

import numpy as np
import pytest

from tandem.types import Request, SampleKey, Sampling

HELLO = [12, 40, 7, 99]


async def test_a_reply_has_the_shape_of_sglang(door_to):
    async with door_to() as door:
        got = await door.post(
            "/generate",
            {
                "input_ids": HELLO,
                "sampling_params": {"max_new_tokens": 5, "ignore_eos": True},
                "return_logprob": True,
                "rid": "mine",
            },
        )
    meta = got["meta_info"]
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "length", "length": 5}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (4, 5)
    assert meta["weight_version"] == "3"
    assert meta["output_versions"] == [3] * 5
    assert [row[1] for row in meta["output_token_logprobs"]] == got["output_ids"]
    assert all(row[0] <= 0 and row[2] is None for row in meta["output_token_logprobs"])
    assert meta["input_token_logprobs"] == []


async def test_tokens_and_logprobs_are_the_engines_own(door_to, model):
    engine = model.engine()
    request = Request(
        id="direct",
        tokens_T=np.array(HELLO, np.int32),
        sampling=Sampling(max_new_tokens=30, temperature=0.7, ignore_eos=True),
        key=SampleKey(seed=5, prompt=0, sample=0),
    )
    [direct] = engine.generate([request])
    body = {
        "input_ids": HELLO,
        "sampling_params": {
            "max_new_tokens": 30,
            "temperature": 0.7,
            "ignore_eos": True,
            "sampling_seed": 5,
        },
        "return_logprob": True,
    }
    async with door_to() as door:
        got = await door.post("/generate", body)
    assert got["output_ids"] == direct.tokens_C.tolist()
    told = [row[0] for row in got["meta_info"]["output_token_logprobs"]]
    assert told == direct.logprobs_C.tolist()  # not a bit is lost on the way


async def test_a_seed_repeats_and_its_absence_does_not(door_to):
    body = {"input_ids": HELLO, "sampling_params": {"max_new_tokens": 20, "ignore_eos": True}}
    seeded = {**body, "sampling_params": {**body["sampling_params"], "sampling_seed": 9}}
    async with door_to() as door:
        first, second = [(await door.post("/generate", body))["output_ids"] for _ in range(2)]
        third, fourth = [(await door.post("/generate", seeded))["output_ids"] for _ in range(2)]
    assert first != second
    assert third == fourth


async def test_batches_and_several_answers_come_prompt_by_prompt(door_to):
    body = {
        "input_ids": [[5], [6, 7]],
        "sampling_params": {"max_new_tokens": 3, "n": 2, "ignore_eos": True},
        "rid": ["a", "b"],
    }
    async with door_to() as door:
        got = await door.post("/generate", body)
    ids = [one["meta_info"]["id"] for one in got]
    lengths = [one["meta_info"]["prompt_tokens"] for one in got]
    assert (ids, lengths) == (["a", "a", "b", "b"], [1, 1, 2, 2])
    assert len({tuple(one["output_ids"]) for one in got}) > 2


async def test_text_stands_for_its_tokens(door_to, model):
    params = {"max_new_tokens": 6, "temperature": 0}
    async with door_to() as door:
        by_text = await door.post("/generate", {"text": "higher", "sampling_params": params})
        by_ids = await door.post(
            "/generate", {"input_ids": model.tokens("higher"), "sampling_params": params}
        )
    assert by_text["output_ids"] == by_ids["output_ids"]
    assert by_text["text"] == by_ids["text"]


async def test_a_stop_token_is_kept_among_ids_and_left_out_of_text(door_to, model):
    params = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    async with door_to() as door:
        free = await door.post("/generate", {"input_ids": HELLO, "sampling_params": params})
        stop = free["output_ids"][4]
        cut = free["output_ids"][: free["output_ids"].index(stop) + 1]
        params["stop_token_ids"] = [stop]
        got = await door.post("/generate", {"input_ids": HELLO, "sampling_params": params})
        params["no_stop_trim"] = True
        whole = await door.post("/generate", {"input_ids": HELLO, "sampling_params": params})
    assert got["output_ids"] == cut
    assert got["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert got["text"] == model.tokenizer.decode(cut[:-1])
    assert whole["text"] == model.tokenizer.decode(cut)


async def test_logprobs_of_the_prompt_are_those_of_a_fresh_forward(door_to, logprobs_of):
    body = {
        "input_ids": HELLO,
        "sampling_params": {"max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 1,
    }
    async with door_to() as door:
        rows = (await door.post("/generate", body))["meta_info"]["input_token_logprobs"]
    assert [row[1] for row in rows] == HELLO[1:]
    assert rows[0][0] is None
    assert [row[0] for row in rows[1:]] == pytest.approx(logprobs_of(HELLO)[2:], abs=1e-4)


@pytest.mark.parametrize("stops", [[], "stop string"])
async def test_a_stream_ends_with_the_whole_reply(door_to, model, stops):
    params = {"max_new_tokens": 40, "sampling_seed": 4, "ignore_eos": True}
    body = {"input_ids": HELLO, "sampling_params": params, "return_logprob": True}
    async with door_to(stream_interval=3) as door:
        if stops:
            ids = (await door.post("/generate", body))["output_ids"]
            params["stop"] = [model.tokenizer.decode(ids[16:19])]  # tokens of two pieces
        whole = await door.post("/generate", body)
        events = await door.events("/generate", body)
    lengths = [len(event["output_ids"]) for event in events]
    assert lengths == sorted(lengths) and len(events) > 3
    assert all(event["meta_info"]["finish_reason"] is None for event in events[:-1])
    last = events[-1]
    assert last["output_ids"] == whole["output_ids"]
    assert last["text"] == whole["text"]
    assert last["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]
    told, expected = (
        [row[0] for row in one["meta_info"]["output_token_logprobs"]] for one in (last, whole)
    )
    assert told == pytest.approx(expected, abs=1e-4)
    assert all(last["text"].startswith(event["text"]) for event in events)


async def test_an_aborted_request_answers_with_what_it_has(door_to):
    body = {
        "input_ids": HELLO,
        "sampling_params": {"max_new_tokens": 400, "ignore_eos": True},
        "rid": "slow",
    }
    async with door_to() as door:
        waiting = asyncio.create_task(door.post("/generate", body))
        while door.engine.stats().num_generated_tokens < 3:
            await asyncio.sleep(0)
        await door.post("/abort_request", {"rid": "another"})
        assert not waiting.done()
        await door.post("/abort_request", {"rid": "slow"})
        got = await waiting
        assert got["meta_info"]["finish_reason"]["type"] == "abort"
        assert 0 < got["meta_info"]["completion_tokens"] < 400
        assert len(got["output_ids"]) == got["meta_info"]["completion_tokens"]
        loads = await door.get("/v1/loads")
        assert loads["aggregate"]["total_reqs"] == 0


async def test_abort_all_ends_streams_too(door_to):
    body = {"input_ids": HELLO, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
    async with door_to(stream_interval=2) as door:
        waiting = asyncio.create_task(door.events("/generate", body))
        while door.engine.stats().num_generated_tokens < 5:
            await asyncio.sleep(0)
        await door.post("/abort_request", {"abort_all": True})
        events = await waiting
        assert events[-1]["meta_info"]["finish_reason"]["type"] == "abort"


async def test_a_client_that_leaves_frees_the_engine(door_to):
    body = {"input_ids": HELLO, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
    async with door_to() as door:
        waiting = asyncio.create_task(door.post("/generate", body))
        while door.engine.stats().num_running == 0:
            await asyncio.sleep(0)
        waiting.cancel()
        while door.engine.stats().num_running:
            await asyncio.sleep(0.01)
        assert door.engine.stats().num_generated_tokens < 400


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"input_ids": None}, "input_ids or text"),
        ({"input_ids": "abc"}, "input_ids"),
        ({"input_ids": [1.5]}, "input_ids"),
        ({"input_ids": []}, "no tokens"),
        ({"input_ids": [10**6]}, "token ids"),
        ({"sampling_params": {"max_new_tokens": 10**6}}, "context"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"sampling_params": {"top_p": 0}}, "top_p"),
        ({"sampling_params": {"frequency_penalty": 0.5}}, "frequency_penalty"),
        ({"sampling_params": {"regex": "a+"}}, "regex"),
        ({"sampling_params": {"tempratur": 1}}, "tempratur"),
        ({"sampling_params": [{}, {}]}, "sampling_params"),
        ({"image_data": "http://x"}, "image_data"),
        ({"top_logprobs_num": 2}, "top_logprobs_num"),
        ({"sampling_params": {"n": 10**6}}, "n is"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(door_to, change, word):
    async with door_to() as door:
        got = await door.post("/generate", {"input_ids": HELLO, **change}, status=400)
        assert word in got["error"]["message"]
        assert door.engine.stats().num_running == 0


async def test_fields_that_ask_for_nothing_are_no_fault(door_to):
    body = {
        "input_ids": HELLO,
        "sampling_params": {"max_new_tokens": 1, "frequency_penalty": 0.0, "regex": None},
        "return_hidden_states": False,
        "lora_path": None,
    }
    async with door_to() as door:
        assert (await door.post("/generate", body))["meta_info"]["completion_tokens"] == 1
