import asyncio

from aiohttp import web
from reward_samples import group_of, sample_of

from tandem.config import RewardConfig
from tandem.rewards.remote import RemoteReward
from tandem.rewards.reward import RewardStage


async def served(handler):
    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    return runner, f"http://127.0.0.1:{port}/"


async def no_pause(seconds):
    await asyncio.sleep(0)


async def test_the_service_gets_prompt_response_and_label():
    seen = []

    async def handler(request):
        seen.append(await request.json())
        return web.json_response({"score": 0.5})

    runner, url = await served(handler)
    verdict = await RemoteReward(url).judge(prompt="ask", response="said", label=5)
    await runner.cleanup()
    assert verdict.value == {"score": 0.5}
    assert seen == [{"prompt": "ask", "response": "said", "label": 5}]


async def test_a_service_that_fails_is_asked_ten_times_with_growing_pauses():
    asked = 0
    pauses = []

    async def handler(request):
        nonlocal asked
        asked += 1
        return web.Response(status=500)

    async def pause(seconds):
        pauses.append(seconds)

    runner, url = await served(handler)
    verdict = await RemoteReward(url, pause=pause).judge(prompt="a", response="b", label=None)
    await runner.cleanup()
    assert asked == 10
    assert "in 10 attempts" in verdict.error
    wanted = [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert [int(seconds) for seconds in pauses] == wanted


async def test_a_service_that_recovers_gives_its_verdict():
    asked = 0

    async def handler(request):
        nonlocal asked
        asked += 1
        return web.json_response(1.0) if asked == 3 else web.Response(text="not json")

    runner, url = await served(handler)
    verdict = await RemoteReward(url, pause=no_pause).judge(prompt="a", response="b", label="c")
    await runner.cleanup()
    assert verdict.value == 1.0


async def test_at_most_64_requests_are_open_at_once():
    open_now = peak = 0

    async def handler(request):
        nonlocal open_now, peak
        open_now += 1
        peak = max(peak, open_now)
        await asyncio.sleep(0.01)
        open_now -= 1
        return web.json_response(0)

    runner, url = await served(handler)
    service = RemoteReward(url)
    one = {"prompt": "a", "response": "b", "label": "c"}
    await asyncio.gather(*(service.judge(**one) for _ in range(150)))
    await runner.cleanup()
    assert 1 < peak <= 64


async def test_the_stage_asks_the_service_by_name():
    async def handler(request):
        asked = await request.json()
        return web.json_response(len(asked["response"]))

    runner, url = await served(handler)
    stage = RewardStage(RewardConfig(rm_type="remote_rm", rm_url=url))
    judged = await stage.score(group_of(sample_of(0, "four")))
    boxed = await stage.score(group_of(sample_of(0, "\\boxed{a}"), rm_type="boxed_remote_rm"))
    stage.close()
    await runner.cleanup()
    assert judged.rewards_G == (4.0,)
    assert boxed.rewards_G == (1.0,)
