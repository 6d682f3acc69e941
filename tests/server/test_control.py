"""Addresses that say how the server stands, and who is let in."""

import pytest

from tandem.errors import ResourceError
from tandem.server import Server, ServerSettings

ASK = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 2}}


async def test_health_needs_no_body_and_a_token_shows_that_the_engine_works(door_to):
    async with door_to() as door:
        for path in ("/health", "/health_generate"):
            async with door.client.get(path) as response:
                assert response.status == 200
        assert door.engine.stats().num_generated_tokens == 1


async def test_an_engine_that_sleeps_is_not_healthy(door_to):
    async with door_to() as door:
        door.engine.sleep()
        async with door.client.get("/health_generate") as response:
            assert response.status == 503
        async with door.client.get("/health") as response:
            assert response.status == 200
        door.engine.wake()


async def test_model_and_server_say_who_they_are(door_to):
    async with door_to() as door:
        for path in ("/model_info", "/get_model_info"):
            info = await door.get(path)
            assert (info["model_path"], info["weight_version"]) == ("tiny", "3")
        info = await door.get("/server_info")
        assert info["internal_states"][0]["version"] == 3
        assert [one["id"] for one in (await door.get("/v1/models"))["data"]] == ["tiny"]


async def test_flushing_makes_the_engine_forget(door_to):
    long = {"input_ids": list(range(5, 40)), "sampling_params": {"max_new_tokens": 1}}
    async with door_to() as door:
        await door.post("/generate", long)
        again = await door.post("/generate", long)
        assert again["meta_info"]["cached_tokens"] > 0
        async with door.client.post("/flush_cache") as response:
            assert (response.status, await response.text()) == (200, "Cache flushed.\n")
        again = await door.post("/generate", long)
        assert again["meta_info"]["cached_tokens"] == 0


async def test_a_key_is_asked_of_everybody_but_health_checks(door_to):
    async with door_to(api_key="secret") as door:
        for key in (None, "Bearer wrong", "secret", "Bearer session:x", "Bearer session:x:wrong"):
            headers = {"Authorization": key} if key else {}
            got = await door.post("/generate", ASK, headers=headers, status=401)
            assert got["error"]["code"] == "invalid_api_key"
        for key in ("Bearer secret", "Bearer session:x:secret"):
            await door.post("/generate", ASK, headers={"Authorization": key})
        async with door.client.get("/health") as response:
            assert response.status == 200
        assert "x" in door.recorder


async def test_faults_are_json_with_a_status(door_to):
    async with door_to(max_body_bytes=1000) as door:
        got = await door.post("/nowhere", {}, status=404)
        assert "/nowhere" in got["error"]["message"]
        await door.post("/generate", {"input_ids": [1] * 2000}, status=413)
        async with door.client.post("/generate", data=b"\x80\x04no pickle") as response:
            assert response.status == 400
        async with door.client.post("/generate", data=b"[1, 2]") as response:
            assert response.status == 400
            assert "object" in (await response.json())["error"]["message"]


async def test_a_port_that_is_taken_is_said_plainly(door_to, model):
    async with door_to() as door:
        port = int(door.server.url.rsplit(":", 1)[1])
        settings = ServerSettings(model="tiny", max_context=64, port=port)
        with pytest.raises(ResourceError, match="another port"):
            await Server(door.engine, model.tokenizer, settings).start()


async def test_it_listens_to_this_machine_alone_unless_told(door_to):
    async with door_to() as door:
        assert door.server.url.startswith("http://127.0.0.1:")
