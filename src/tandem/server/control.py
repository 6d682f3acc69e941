"""Addresses that say how the server stands, and end what it does."""

import json
from typing import Any, Protocol, runtime_checkable

import numpy as np
from aiohttp import web

from tandem import __version__
from tandem.server.branches import Pins
from tandem.server.faults import Refusal
from tandem.server.fields import Fields
from tandem.server.recorder import session_json
from tandem.server.service import Service, new_id, read_json
from tandem.server.terms import Terms
from tandem.types import SampleKey, Sampling


@runtime_checkable
class Forgets(Protocol):
    """An engine that can drop the prefixes it keeps."""

    def forget(self) -> None: ...


async def health(service: Service, request: web.Request) -> web.Response:
    """200 as soon as the server answers; no body."""
    return web.Response()


async def health_generate(service: Service, request: web.Request) -> web.Response:
    """200 once a token was sampled; 503 where the engine cannot."""
    terms = Terms(sampling=Sampling(max_new_tokens=1, temperature=0.0, ignore_eos=True), limit=1)
    probe_T = np.zeros(1, np.int32)
    try:
        with service.desk.asks(probe_T, terms, id=f"health-{new_id()}", session=None) as asks:
            await service.desk.answer(asks[0])
    except Refusal as refusal:
        raise Refusal(refusal.message, status=503) from refusal
    return web.Response()


async def abort_request(service: Service, request: web.Request) -> web.Response:
    """Ends one request by its `rid`, or with `abort_all` every one that came to this server."""
    fields = Fields(await read_json(request))
    rid, takes_all = fields.text("rid", ""), fields.flag("abort_all")
    fields.done()
    if not rid and not takes_all:
        raise Refusal('give {"rid": ...} or {"abort_all": true}')
    await service.desk.abort(None if takes_all else rid)
    return web.Response()


async def model_info(service: Service, request: web.Request) -> web.Response:
    """The model and the version of its weights."""
    model = service.settings.model
    return web.json_response(
        {
            "model_path": model,
            "tokenizer_path": model,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": str(service.engine.stats().version),
            "has_image_understanding": False,
            "has_audio_understanding": False,
        }
    )


async def server_info(service: Service, request: web.Request) -> web.Response:
    """Settings of the server and the state of the engine."""
    settings, stats = service.settings, service.engine.stats()
    state = {name: getattr(stats, name) for name in stats.__slots__}
    return web.json_response(
        {
            "version": f"tandem {__version__}",
            "model_path": settings.model,
            "served_model_name": settings.model,
            "context_length": settings.max_context,
            "max_req_input_len": settings.max_context - 1,
            "stream_interval": settings.stream_interval,
            "internal_states": [state],
        }
    )


async def loads(service: Service, request: web.Request) -> web.Response:
    """How much there is to do; `total_reqs` is 0 when everything is answered."""
    stats = service.engine.stats()
    num_used = stats.num_cache_blocks - stats.num_free_blocks
    share = num_used / stats.num_cache_blocks if stats.num_cache_blocks else 0.0
    running, waiting = stats.num_running, stats.num_waiting
    total = max(running + waiting, service.desk.num_live)
    one = {
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_total_reqs": total,
        "token_usage": share,
    }
    everything = {
        "total_running_reqs": running,
        "total_waiting_reqs": waiting,
        "total_reqs": total,
        "avg_token_usage": share,
    }
    body = {"dp_rank_count": 1, "loads": [one], "aggregate": everything}
    return web.json_response(body)


async def workers(service: Service, request: web.Request) -> web.Response:
    """This server as the one worker of a router, for clients that ask a router."""
    url = f"{request.scheme}://{request.host}"
    return web.json_response({"workers": [{"id": url, "url": url, "is_healthy": True}], "total": 1})


async def flush_cache(service: Service, request: web.Request) -> web.Response:
    """Drops cached prefixes; 400 while anything is being sampled, or if the engine keeps them."""
    stats = service.engine.stats()
    is_idle = stats.num_running == stats.num_waiting == 0
    if not is_idle or not isinstance(service.engine, Forgets):
        return web.Response(text="Flush cache failed.\n", status=400)
    service.engine.forget()
    return web.Response(text="Cache flushed.\n")


async def open_session(service: Service, request: web.Request) -> web.Response:
    """Opens a session, with what its randomness is a function of and what it fixes."""
    fields = Fields(await read_json(request))
    words = [fields.count(name, low=-(1 << 62)) for name in ("seed", "prompt", "sample")]
    pins = Pins(
        temperature=_maybe_number(fields, "temperature"),
        top_p=_maybe_number(fields, "top_p"),
        top_k=fields.count("top_k", low=-1),
        max_new_tokens=fields.count("max_new_tokens"),
    )
    prompt_ids = fields.ids("prompt_ids")
    fields.done()
    if any(word is None for word in words) and any(word is not None for word in words):
        raise Refusal("give all of seed, prompt and sample, or none of them")
    seed, prompt, sample = (word or 0 for word in words)
    service.recorder.open(
        request.match_info["name"],
        key=None if words[0] is None else SampleKey(seed=seed, prompt=prompt, sample=sample),
        prompt_T=np.asarray(prompt_ids, np.int32) if prompt_ids else None,
        pins=pins,
    )
    return web.json_response({"session": request.match_info["name"]}, status=201)


async def read_session(service: Service, request: web.Request) -> web.Response:
    """Every sequence that a session holds: token ids, log-probs and versions as sampled."""
    name = request.match_info["name"]
    samples: list[dict[str, Any]] = session_json(service.recorder.get(name))
    for sample in samples:
        sample["response"] = service.words.decode(sample["tokens"][sample["prompt_tokens"] :])
    body = {"session": name, "samples": samples}
    return web.Response(text=json.dumps(body), content_type="application/json")


async def close_session(service: Service, request: web.Request) -> web.Response:
    """Forgets a session; 404 if there is none."""
    service.recorder.get(request.match_info["name"])
    service.recorder.close(request.match_info["name"])
    return web.json_response({"session": request.match_info["name"]})


def _maybe_number(fields: Fields, name: str) -> float | None:
    value = fields.number(name, -1.0, low=-1.0, high=100.0)
    return None if value < 0 else value
