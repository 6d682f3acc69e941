"""`/v1/chat/completions`, as OpenAI's API has it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tandem.server.branches import Conversation
from tandem.server.completions import NO_EFFECT, wants_usage
from tandem.server.desk import Ask
from tandem.server.fields import Fields
from tandem.server.messages import read_messages, read_tools, reply_message
from tandem.server.replies import FINISH, chat_logprobs, envelope, usage
from tandem.server.service import Service, new_id, read_json
from tandem.server.streams import growths, send_events
from tandem.server.terms import Terms, openai_terms
from tandem.server.words import comparable
from tandem.types import Completion


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wanted:
    """What a chat request asks for."""

    id: str
    messages: list[dict[str, Any]]
    settings: Mapping[str, Any]  # what the template is given besides messages
    terms: Terms
    has_tools: bool
    has_logprobs: bool
    has_ids: bool
    has_usage: bool  # at the end of a stream
    user: str | None


async def chat(service: Service, request: web.Request) -> web.StreamResponse:
    """`n` replies to a conversation."""
    fields = Fields(await read_json(request))
    is_streamed = fields.flag("stream")
    wanted = _read(fields)
    if is_streamed:
        return await send_events(request, _events(service, request, wanted))
    with _asked(service, request, wanted) as asks:
        answers = await service.desk.answers(asks)
    choices = [
        _choice(service, wanted, ask, answer) for ask, answer in zip(asks, answers, strict=True)
    ]
    body = envelope("chat.completion", wanted.id, service.settings.model, choices=choices)
    counted = usage(len(asks[0].tokens_T), answers)
    return web.json_response({**body, "usage": counted})


def _read(fields: Fields) -> Wanted:
    terms = openai_terms(fields, None)
    messages = read_messages(fields.take("messages"))
    tools = read_tools(fields)
    settings = {
        "tools": tools or None,
        "chat_template_kwargs": dict(fields.mapping("chat_template_kwargs")),
    }
    fields.only("top_logprobs", 0, why="only the chosen token's log-prob is known")
    fields.only("modalities", ["text"])
    fields.only("continue_final_message", why="a reply is a message of its own")
    wanted = Wanted(
        id=f"chatcmpl-{new_id()}",
        messages=messages,
        settings=settings,
        terms=terms,
        has_tools=bool(tools),
        has_logprobs=fields.flag("logprobs"),
        has_ids=fields.flag("return_token_ids"),
        has_usage=wants_usage(fields),
        user=fields.text("user"),
    )
    fields.ignore(*NO_EFFECT, "parallel_tool_calls", "reasoning_effort", "prompt_cache_key")
    fields.done()
    return wanted


def _asked(
    service: Service, request: web.Request, wanted: Wanted
) -> AbstractContextManager[list[Ask]]:
    session = service.session_of(request, wanted.user)
    tokens_T, conversation = service.words.chat(wanted.messages, wanted.settings, session=session)

    def said(answer: Completion, choice: int) -> Conversation:
        # as the client will send it back: read like any message of its own
        reply = read_messages([_reply(service, wanted, answer, choice)])[0]
        return (*conversation, comparable(reply))

    return service.desk.asks(tokens_T, wanted.terms, id=wanted.id, session=session, said=said)


def _reply(service: Service, wanted: Wanted, answer: Completion, choice: int) -> dict[str, Any]:
    text = service.words.answer(answer, wanted.terms)
    call_id = f"{wanted.id.removeprefix('chatcmpl-')}_{choice}"
    return reply_message(text, has_tools=wanted.has_tools, call_id=call_id)


def _finish(answer: Completion, message: Mapping[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else FINISH[answer.ending]


def _choice(service: Service, wanted: Wanted, ask: Ask, answer: Completion) -> dict[str, Any]:
    message = _reply(service, wanted, answer, ask.choice)
    choice = {
        "index": ask.choice,
        "message": message,
        "logprobs": chat_logprobs(answer, service.words) if wanted.has_logprobs else None,
        "finish_reason": _finish(answer, message),
    }
    if wanted.has_ids:
        choice["prompt_token_ids"] = ask.tokens_T.tolist()
        choice["token_ids"] = answer.tokens_C.tolist()
    return choice


async def _events(
    service: Service, request: web.Request, wanted: Wanted
) -> AsyncGenerator[dict[str, Any], None]:
    """What each reply gained, whenever one has grown.

    Where tools are offered a reply comes whole: whether it is a call is known at its end.
    """
    words, model = service.words, service.settings.model
    kind = "chat.completion.chunk"
    with _asked(service, request, wanted) as asks:
        for ask in asks:
            first = _delta(ask.choice, {"role": "assistant", "content": ""})
            yield envelope(kind, wanted.id, model, choices=[first])
        sent, whole = [("", 0)] * len(asks), []
        stream = growths(service.desk, asks, interval=service.settings.stream_interval)
        async with aclosing(stream):
            async for place, piece, is_last in stream:
                if wanted.has_tools and not is_last:
                    continue
                before, count = sent[place]
                delta: dict[str, Any] = {}
                finish = None
                if is_last:
                    message = _reply(service, wanted, piece, place)
                    finish = _finish(piece, message)
                    delta = _calls_delta(message)
                text = (message["content"] or "") if is_last else words.settled(piece, wanted.terms)
                sent[place] = text, len(piece.tokens_C)
                choice = _delta(place, {"content": text[len(before) :], **delta}, finish)
                if wanted.has_logprobs:
                    choice["logprobs"] = chat_logprobs(piece, words, count)
                if wanted.has_ids:
                    choice["token_ids"] = piece.tokens_C[count:].tolist()
                yield envelope(kind, wanted.id, model, choices=[choice])
                whole += [piece] if is_last else []
    if wanted.has_usage:
        counted = usage(len(asks[0].tokens_T), whole)
        yield envelope(kind, wanted.id, model, choices=[], usage=counted)


def _delta(index: int, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _calls_delta(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return {}
    return {"tool_calls": [{"index": place, **call} for place, call in enumerate(calls)]}
