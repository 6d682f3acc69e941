"""`/v1/completions` and `/v1/models`, as OpenAI's API has them."""

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import web

from tandem.server.desk import Ask
from tandem.server.faults import Refusal
from tandem.server.fields import Fields, is_whole
from tandem.server.generate import token_ids
from tandem.server.replies import FINISH, envelope, text_logprobs, usage
from tandem.server.service import Service, new_id, read_json
from tandem.server.streams import growths, send_events
from tandem.server.terms import COMPLETION_LIMIT, Terms, openai_terms
from tandem.types import Completion

NO_EFFECT = ("model", "store", "metadata", "service_tier", "stream_options", "user")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wanted:
    """What a text completion asks for."""

    id: str
    prompts: list[np.ndarray]
    terms: Terms
    has_logprobs: bool
    has_ids: bool
    has_usage: bool  # at the end of a stream
    user: str | None


async def models(service: Service, request: web.Request) -> web.Response:
    """The one model there is."""
    name = service.settings.model
    model = {"id": name, "object": "model", "created": 0, "owned_by": "tandem"}
    model["max_model_len"] = service.settings.max_context
    return web.json_response({"object": "list", "data": [model]})


async def completions(service: Service, request: web.Request) -> web.StreamResponse:
    """The continuations of one prompt or several, `n` for each."""
    fields = Fields(await read_json(request))
    is_streamed = fields.flag("stream")
    wanted = _read(service, fields)
    if is_streamed:
        return await send_events(request, _events(service, request, wanted))
    with ExitStack() as stack:
        asks = _asked(service, request, wanted, stack)
        answers = await service.desk.answers(asks)
        choices = [
            _choice(service, wanted, place, ask, answer)
            for place, (ask, answer) in enumerate(zip(asks, answers, strict=True))
        ]
    num_prompt = sum(len(tokens_T) for tokens_T in wanted.prompts)
    body = envelope("text_completion", wanted.id, service.settings.model, choices=choices)
    return web.json_response({**body, "usage": usage(num_prompt, answers)})


def wants_usage(fields: Fields) -> bool:
    """Whether a stream is to end with the count of its tokens."""
    return Fields(fields.mapping("stream_options"), "stream_options").flag("include_usage")


def _read(service: Service, fields: Fields) -> Wanted:
    terms = openai_terms(fields, COMPLETION_LIMIT)
    fields.only("best_of", 1, terms.num_choices, why="every answer is returned")
    fields.only("echo", why="the prompt is not repeated")
    fields.only("suffix", why="this model only continues")
    logprobs = fields.take("logprobs", None)
    if logprobs not in (None, False, True, 0, 1):
        raise Refusal("only the log-prob of the chosen token is known: logprobs 0 or 1")
    wanted = Wanted(
        id=f"cmpl-{new_id()}",
        prompts=_prompts(service, fields.take("prompt")),
        terms=terms,
        has_logprobs=logprobs is not None and logprobs is not False,
        has_ids=fields.flag("return_token_ids"),
        has_usage=wants_usage(fields),
        user=fields.text("user"),
    )
    fields.ignore(*NO_EFFECT)
    fields.done()
    return wanted


def _prompts(service: Service, value: Any) -> list[np.ndarray]:
    if isinstance(value, str) or (isinstance(value, list) and all(map(is_whole, value))):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Refusal("prompt is to be text, token ids, or a list of these", param="prompt")
    return [
        service.words.tokens(one, adds_special=True)
        if isinstance(one, str)
        else token_ids(one, "prompt")
        for one in value
    ]


def _asked(service: Service, request: web.Request, wanted: Wanted, stack: ExitStack) -> list[Ask]:
    session = service.session_of(request, wanted.user)
    asks: list[Ask] = []
    for place, tokens_T in enumerate(wanted.prompts):
        name = f"{wanted.id}-{place}"
        asks += stack.enter_context(
            service.desk.asks(tokens_T, wanted.terms, id=name, session=session)
        )
    return asks


def _choice(
    service: Service, wanted: Wanted, place: int, ask: Ask, answer: Completion
) -> dict[str, Any]:
    choice = {
        "index": place,
        "text": service.words.answer(answer, wanted.terms),
        "logprobs": text_logprobs(answer, service.words) if wanted.has_logprobs else None,
        "finish_reason": FINISH[answer.ending],
    }
    if wanted.has_ids:
        choice["prompt_token_ids"] = ask.tokens_T.tolist()
        choice["token_ids"] = answer.tokens_C.tolist()
    return choice


async def _events(
    service: Service, request: web.Request, wanted: Wanted
) -> AsyncGenerator[dict[str, Any], None]:
    """What each answer gained, whenever one has grown."""
    words, model = service.words, service.settings.model
    with ExitStack() as stack:
        asks = _asked(service, request, wanted, stack)
        sent, whole = [("", 0)] * len(asks), []
        stream = growths(service.desk, asks, interval=service.settings.stream_interval)
        async with aclosing(stream):
            async for place, piece, is_last in stream:
                text = (words.answer if is_last else words.settled)(piece, wanted.terms)
                before, count = sent[place]
                sent[place] = text, len(piece.tokens_C)
                logprobs = text_logprobs(piece, words, count) if wanted.has_logprobs else None
                choice = {
                    "index": place,
                    "text": text[len(before) :],
                    "logprobs": logprobs,
                    "finish_reason": FINISH[piece.ending] if is_last else None,
                }
                if wanted.has_ids:
                    choice["token_ids"] = piece.tokens_C[count:].tolist()
                yield envelope("text_completion", wanted.id, model, choices=[choice])
                whole += [piece] if is_last else []
    if wanted.has_usage:
        num_prompt = sum(len(tokens_T) for tokens_T in wanted.prompts)
        counted = usage(num_prompt, whole)
        yield envelope("text_completion", wanted.id, model, choices=[], usage=counted)
