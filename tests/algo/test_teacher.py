from types import SimpleNamespace

import pytest
from aiohttp import web

from tandem.algo.teacher import ask_teacher, no_reward, teacher_alone
from tandem.errors import RewardError

TOKENS, RESPONSE = [5, 7, 9, 11, 13], 3


@pytest.fixture
async def teacher():
    """A server that answers as SGLang does; `asked` holds what it was sent."""
    asked = []

    async def generate(request):
        body = await request.json()
        asked.append(body)
        told = [[None, 5, None]] + [[-0.5 * t, t, None] for t in body["input_ids"][1:]]
        if body["input_ids"][-1] == 99:
            told = told[-2:]
        return web.json_response({"text": "", "meta_info": {"input_token_logprobs": told}})

    app = web.Application()
    app.router.add_post("/generate", generate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}/generate", asked=asked)
    await runner.cleanup()


def sample(tokens):
    return SimpleNamespace(tokens=tokens, response_length=RESPONSE, metadata={"kept": 1})


async def test_a_servers_logprobs_of_the_response_end_up_in_the_metadata(teacher):
    args, one = SimpleNamespace(rm_url=teacher.url, rollout_temperature=0.8), sample(TOKENS)
    assert await ask_teacher(args, one) == 0.0
    assert one.metadata == {"kept": 1, "teacher_log_probs": [-4.5, -5.5, -6.5]}
    (body,) = teacher.asked
    assert body["input_ids"] == TOKENS
    assert body["sampling_params"]["max_new_tokens"] == 0
    assert body["sampling_params"]["temperature"] == 0.8
    assert body["return_logprob"] is True and body["logprob_start_len"] == 0


async def test_an_answer_about_other_tokens_is_no_verdict(teacher):
    args = SimpleNamespace(rm_url=teacher.url, rollout_temperature=1.0)
    with pytest.raises(RewardError, match="answered about 2 tokens"):
        await ask_teacher(args, sample([5, 7, 9, 11, 99]))


async def test_no_reward_is_a_verdict_of_zero():
    assert await no_reward(None, sample(TOKENS)) == 0.0


def test_a_teacher_alone_leaves_rewards_to_reports():
    views = [SimpleNamespace(get_reward_value=lambda args, r=r: r) for r in (1.0, 0.5)]
    assert teacher_alone(None, views) == ([1.0, 0.5], [0.0, 0.0])
