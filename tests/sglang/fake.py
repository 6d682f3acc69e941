"""A server that speaks SGLang's HTTP without a model, and misbehaves when told to.

    python tests/sglang/fake.py --port N [--fail TEXT] [--after FILE]

A token is a function of its place in the sequence, its log-prob of the weight version that the
server has, so a test sees at once what was sampled twice, left out, or by other weights.
"""

import argparse
import asyncio
import base64
import io
import os
import pickle
import shlex
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from aiohttp import ClientSession, web

TICK_S = 0.002
CANARY = [0.0, -1.0, -2.0, -3.0]


def token_at(place):
    return 100 + place


def logprob_of(version):
    return -0.125 * (version + 1)


class FakeServer:
    """State of the server; `faults` are what happens to the next requests for tokens, in order."""

    def __init__(self):
        self.version, self.is_paused, self.is_slow = "default", False, True
        self.running, self.aborted = set(), set()
        self.faults, self.asked, self.calls = [], [], []
        self.canary = list(CANARY)
        self.update_fails = self.ignores_aborts = False
        self.buckets = []
        self.released = set()
        self.starts = Counter()

    def app(self):
        app = web.Application(client_max_size=1 << 30, middlewares=[self._noted])
        for path in (
            "/pause_generation",
            "/continue_generation",
            "/flush_cache",
            "/abort_request",
            "/generate",
            "/update_weight_version",
            "/update_weights_from_tensor",
            "/update_weights_from_disk",
            "/release_memory_occupation",
            "/resume_memory_occupation",
            "/crash",
        ):
            app.router.add_post(path, getattr(self, path[1:]))
        app.router.add_get("/health", self.health)
        app.router.add_get("/model_info", self.model_info)
        app.router.add_get("/server_info", self.server_info)
        return app

    @web.middleware
    async def _noted(self, request, handler):
        if request.path != "/health":
            self.calls.append(request.path)
        return await handler(request)

    async def health(self, request):
        return web.Response()

    async def model_info(self, request):
        return web.json_response({"weight_version": self.version})

    async def server_info(self, request):
        return web.json_response({"tp_size": 1, "version": "0.5.15.post1"})

    async def pause_generation(self, request):
        self.is_paused = True
        return web.json_response({"status": "ok"})

    async def continue_generation(self, request):
        self.is_paused = False
        return web.json_response({"status": "ok"})

    async def flush_cache(self, request):
        if self.running:
            return web.Response(status=400, text="Flush cache failed.")
        return web.Response(text="Cache flushed.")

    async def abort_request(self, request):
        body = await request.json()
        chosen = self.running if body.get("abort_all") else {body["rid"]}
        if not self.ignores_aborts:
            self.aborted |= set(chosen)
        return web.Response()

    async def update_weight_version(self, request):
        self.version = (await request.json())["new_version"]
        return web.json_response({"success": True, "message": ""})

    async def update_weights_from_tensor(self, request):
        assert self.is_paused and not self.running
        if self.update_fails:
            return web.json_response({"success": False, "message": "no such tensor"}, status=400)
        for text in (await request.json())["serialized_named_tensors"]:
            self.buckets.append(pickle.load(io.BytesIO(base64.b64decode(text))))
        return web.json_response({"success": True, "message": ""})

    async def update_weights_from_disk(self, request):
        self.buckets.append(await request.json())
        return web.json_response({"success": True, "message": "", "num_paused_requests": 0})

    async def release_memory_occupation(self, request):
        self.released |= set((await request.json())["tags"])
        return web.json_response(None)

    async def resume_memory_occupation(self, request):
        self.calls[-1] += " " + " ".join((await request.json())["tags"])
        return web.json_response(None)

    async def crash(self, request):
        os.kill(os.getpid(), signal.SIGKILL)

    async def generate(self, request):
        body = await request.json()
        if body.get("logprob_start_len") == 0:
            pairs = [[value, 0, None] for value in self.canary]
            meta = {"input_token_logprobs": pairs, "finish_reason": {"type": "length"}}
            return web.json_response({"output_ids": [], "meta_info": meta})
        self.asked.append(body)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            answer = await self._misbehave(fault, request)
            if answer is not None:
                return answer
        return web.json_response(await self._sampled(body))

    async def _misbehave(self, fault, request):
        """What a fault does; None where the request is answered as if nothing was."""
        kind, _, value = fault.partition(" ")
        if kind == "status":
            return web.json_response({"error": {"message": "told to"}}, status=int(value))
        if kind == "cut":
            request.transport.abort()
        elif kind == "half":
            response = web.StreamResponse(headers={"Content-Length": "500"})
            await response.prepare(request)
            await response.write(b'{"output_ids": [1, 2')
            request.transport.abort()
        elif kind == "text":
            return web.Response(text=value, content_type="application/json")
        elif kind == "hang":
            await asyncio.sleep(float(value))
        return None

    async def _sampled(self, body):
        rid, params = body["rid"], body["sampling_params"]
        start, limit = len(body["input_ids"]), params["max_new_tokens"]
        # as the server does: it ignores all stop tokens or none
        stops = [] if params["ignore_eos"] else params.get("stop_token_ids", [])
        tokens, finish = [], {"type": "length", "length": limit}
        self.running.add(rid)
        try:
            while len(tokens) < limit:
                if rid in self.aborted:
                    finish = {"type": "abort", "message": "Aborted"}
                    break
                if self.is_slow:
                    await asyncio.sleep(TICK_S)
                tokens.append(token_at(start + len(tokens)))
                if tokens[-1] in stops:
                    finish = {"type": "stop", "matched": tokens[-1]}
                    break
        finally:
            self.running.discard(rid)
        logprob = logprob_of(int(self.version)) if self.version != "default" else 0.0
        meta = {
            "id": rid,
            "finish_reason": finish,
            "weight_version": self.version,
            "cached_tokens": 0,
            "output_token_logprobs": [[logprob, token, None] for token in tokens],
        }
        return {"text": "", "output_ids": tokens, "meta_info": meta}


class FakeRouter:
    """Sends requests to the servers that it was told of, in turn, and notes their keys."""

    def __init__(self):
        self.workers, self.keys = {}, []

    def app(self):
        app = web.Application()
        app.router.add_get("/liveness", self.liveness)
        app.router.add_get("/workers", self.listed)
        app.router.add_post("/workers", self.added)
        app.router.add_delete("/workers/{id}", self.removed)
        app.router.add_post("/generate", self.generate)
        return app

    async def liveness(self, request):
        return web.Response()

    async def listed(self, request):
        workers = [{"id": name, "url": url} for name, url in self.workers.items()]
        return web.json_response({"workers": workers})

    async def added(self, request):
        self.workers[f"w{len(self.workers)}"] = (await request.json())["url"]
        return web.json_response({"status": "accepted"}, status=202)

    async def removed(self, request):
        del self.workers[request.match_info["id"]]
        return web.Response()

    async def generate(self, request):
        self.keys.append(request.headers.get("X-SMG-Routing-Key"))
        url = list(self.workers.values())[len(self.keys) % len(self.workers)]
        body = await request.json()
        async with (
            ClientSession() as session,
            session.post(url + "/generate", json=body) as reply,
        ):
            return web.json_response(await reply.json(), status=reply.status)


class Hosted:
    """A fake server at an address, on a thread of its own."""

    def __init__(self, state):
        self.state = state
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = self._run(self._start())

    def close(self):
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self):
        self._runner = web.AppRunner(self.state.app(), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"


def interpreter(folder, *words):
    """A program that starts fake servers where SGLang's interpreter is asked for one."""
    program, package = folder / "python", folder / "packages" / "sglang"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    words = " ".join(map(shlex.quote, words))
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -m ] || PYTHONPATH={package.parent} exec {sys.executable} "$@"\n'
        f'shift 2; exec {sys.executable} {Path(__file__).resolve()} "$@" {words}\n'
    )
    program.chmod(0o755)
    return program


def meet(address, rank, size):
    """Returns on the first host when all others have come, on the others with the first one."""
    host, _, port = address.rpartition(":")
    if not rank:
        with socket.create_server((host, int(port))) as door:
            for _ in range(size - 1):
                door.accept()
        return
    while True:
        try:
            socket.create_connection((host, int(port))).close()
            return
        except OSError:
            time.sleep(0.02)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--dist-init-addr")
    parser.add_argument("--fail", help="say this and end")
    parser.add_argument("--after", type=Path, help="answer once this file is there")
    told, _ = parser.parse_known_args()
    if told.fail:
        sys.exit(told.fail)
    while told.after and not told.after.exists():
        time.sleep(0.02)
    if told.nnodes > 1:
        meet(told.dist_init_addr, told.node_rank, told.nnodes)
    if told.node_rank:
        signal.pause()
    web.run_app(FakeServer().app(), host=told.host, port=told.port, print=None)


if __name__ == "__main__":
    main()
