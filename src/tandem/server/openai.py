"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`, as OpenAI's API has them."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import web

from tandem.server.branches import Conversation, Session
from tandem.server.desk import Ask
from tandem.server.faults import Refusal
from tandem.server.fields import Fields, is_whole
from tandem.server.generate import token_ids
from tandem.server.messages import read_messages, read_tools, reply_message
from tandem.server.replies import FINISH, chat_logprobs, envelope, text_logprobs, usage
from tandem.server.service import Service, new_id, read_json
from tandem.server.streams import growths, send_events
from tandem.server.terms import COMPLETION_LIMIT, Terms, openai_terms
from tandem.server.words import comparable
from tandem.types import Completion

NO_EFFECT = ("model", "store", "metadata", "service_tier", "stream_options", "user")
NO_EFFECT_IN_CHAT = ("parallel_tool_calls", "reasoning_effort", "prompt_cache_key")
"""Fields that change nothing that is sampled or returned."""

Message = Mapping[str, Any]
"""A reply: its `content`, and `tool_calls` where it makes any."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wanted:
    """What a request asks for, whichever address it came to."""

    id: str
    terms: Terms
    has_logprobs: bool
    has_ids: bool
    has_usage: bool  # at the end of a stream
    session: Session | None


async def models(service: Service, request: web.Request) -> web.Response:
    """The one model there is."""
    name = service.settings.model
    model = {"id": name, "object": "model", "created": 0, "owned_by": "tandem"}
    model["max_model_len"] = service.settings.max_context
    return web.json_response({"object": "list", "data": [model]})


async def chat(service: Service, request: web.Request) -> web.StreamResponse:
    """`n` replies to a conversation."""
    fields = Fields(await read_json(request))
    return await _answered(service, request, fields.flag("stream"), Chat(service, request, fields))


async def completions(service: Service, request: web.Request) -> web.StreamResponse:
    """The continuations of one prompt or several, `n` for each."""
    fields = Fields(await read_json(request))
    return await _answered(service, request, fields.flag("stream"), Text(service, request, fields))


class Chat:
    """Replies to a conversation, which may call tools.

    `comes_whole`: a stream waits for the end of a reply, where it is known whether it is a call.
    """

    kind, kind_of_event = "chat.completion", "chat.completion.chunk"
    opening: Mapping[str, Any] = {"delta": {"role": "assistant", "content": ""}}
    logprobs = staticmethod(chat_logprobs)

    def __init__(self, service: Service, request: web.Request, fields: Fields) -> None:
        terms = openai_terms(fields, None)
        self._service = service
        self._messages = read_messages(fields.take("messages"))
        tools = read_tools(fields)
        self._settings = {
            "tools": tools or None,
            "chat_template_kwargs": dict(fields.mapping("chat_template_kwargs")),
        }
        self.comes_whole = bool(tools)
        fields.only("top_logprobs", 0, why="only the chosen token's log-prob is known")
        fields.only("modalities", ["text"])
        fields.only("continue_final_message", why="a reply is a message of its own")
        fields.ignore(*NO_EFFECT_IN_CHAT)
        has_logprobs = fields.flag("logprobs")
        self._number = new_id()
        self.wanted = _wanted(
            service, request, fields, f"chatcmpl-{self._number}", terms, has_logprobs
        )

    def asks(self, stack: ExitStack) -> list[Ask]:
        wanted = self.wanted
        tokens_T, conversation = self._service.words.chat(
            self._messages, self._settings, session=wanted.session
        )

        def said(answer: Completion, choice: int) -> Conversation:
            # as the client will send it back: read like any message of its own
            reply = read_messages([self.message(choice, answer)])[0]
            return (*conversation, comparable(reply))

        return stack.enter_context(
            self._service.desk.asks(
                tokens_T, wanted.terms, id=wanted.id, session=wanted.session, said=said
            )
        )

    def message(self, place: int, answer: Completion) -> Message:
        text = self._service.words.answer(answer, self.wanted.terms)
        return reply_message(text, has_tools=self.comes_whole, call_id=f"{self._number}_{place}")

    def whole(self, message: Message) -> dict[str, Any]:
        return {"message": message}

    def gain(self, text: str, message: Message) -> dict[str, Any]:
        calls = [{"index": nth, **one} for nth, one in enumerate(message.get("tool_calls", ()))]
        return {"delta": {"content": text, **({"tool_calls": calls} if calls else {})}}


class Text:
    """Continuations of prompts; see `Chat`."""

    kind = kind_of_event = "text_completion"
    opening: Mapping[str, Any] = {}
    comes_whole = False
    logprobs = staticmethod(text_logprobs)

    def __init__(self, service: Service, request: web.Request, fields: Fields) -> None:
        terms = openai_terms(fields, COMPLETION_LIMIT)
        self._service = service
        fields.only("best_of", 1, terms.num_choices, why="every answer is returned")
        fields.only("echo", why="the prompt is not repeated")
        fields.only("suffix", why="this model only continues")
        logprobs = fields.take("logprobs", None)
        if logprobs not in (None, False, True, 0, 1):
            raise Refusal("only the log-prob of the chosen token is known: logprobs 0 or 1")
        has_logprobs = logprobs is not None and logprobs is not False
        self._prompts = _prompts(service, fields.take("prompt"))
        self.wanted = _wanted(service, request, fields, f"cmpl-{new_id()}", terms, has_logprobs)

    def asks(self, stack: ExitStack) -> list[Ask]:
        wanted, desk = self.wanted, self._service.desk
        asks: list[Ask] = []
        for place, tokens_T in enumerate(self._prompts):
            name = f"{wanted.id}-{place}"
            asks += stack.enter_context(
                desk.asks(tokens_T, wanted.terms, id=name, session=wanted.session)
            )
        return asks

    def message(self, place: int, answer: Completion) -> Message:
        return {"content": self._service.words.answer(answer, self.wanted.terms)}

    def whole(self, message: Message) -> dict[str, Any]:
        return {"text": message["content"]}

    def gain(self, text: str, message: Message) -> dict[str, Any]:
        return {"text": text}


Form = Chat | Text
"""What sets the addresses apart: what is asked for, and how a reply is written."""


async def _answered(
    service: Service, request: web.Request, is_streamed: bool, form: Form
) -> web.StreamResponse:
    if is_streamed:
        return await send_events(request, _events(service, form))
    with ExitStack() as stack:
        asks = form.asks(stack)
        answers = await service.desk.answers(asks)
        choices = []
        for place, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
            message = form.message(place, answer)
            choice = _choice(service, form, place, form.whole(message), answer)
            choice["finish_reason"] = _finish(answer, message)
            if form.wanted.has_ids:
                choice["prompt_token_ids"] = ask.tokens_T.tolist()
                choice["token_ids"] = answer.tokens_C.tolist()
            choices.append(choice)
    body = envelope(form.kind, form.wanted.id, service.settings.model, choices=choices)
    return web.json_response({**body, "usage": usage(_num_prompt(asks), answers)})


async def _events(service: Service, form: Form) -> AsyncGenerator[dict[str, Any], None]:
    """What each reply gained, whenever one has grown."""
    words, wanted = service.words, form.wanted

    def event(choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        model = service.settings.model
        return envelope(form.kind_of_event, wanted.id, model, choices=choices, **rest)

    with ExitStack() as stack:
        asks = form.asks(stack)
        if form.opening:
            for place in range(len(asks)):
                yield event([_choice(service, form, place, form.opening)])
        sent, whole = [("", 0)] * len(asks), []
        stream = growths(service.desk, asks, interval=service.settings.stream_interval)
        async with aclosing(stream):
            async for place, piece, is_last in stream:
                if form.comes_whole and not is_last:
                    continue
                before, count = sent[place]
                message: Message = {"content": words.settled(piece, wanted.terms)}
                if is_last:
                    message = form.message(place, piece)
                    whole.append(piece)
                text = message["content"] or ""
                sent[place] = text, len(piece.tokens_C)
                gain = form.gain(text[len(before) :], message)
                choice = _choice(service, form, place, gain, piece, count)
                choice["finish_reason"] = _finish(piece, message) if is_last else None
                if wanted.has_ids:
                    choice["token_ids"] = piece.tokens_C[count:].tolist()
                yield event([choice])
    if wanted.has_usage:
        yield event([], usage=usage(_num_prompt(asks), whole))


def _choice(
    service: Service,
    form: Form,
    place: int,
    part: Mapping[str, Any],
    answer: Completion | None = None,
    start: int = 0,
) -> dict[str, Any]:
    """A choice that has not ended, with the log-probs of its tokens from place `start` on."""
    logprobs = None
    if form.wanted.has_logprobs and answer is not None:
        logprobs = form.logprobs(answer, service.words, start)
    return {"index": place, **part, "logprobs": logprobs, "finish_reason": None}


def _finish(answer: Completion, message: Message) -> str:
    return "tool_calls" if message.get("tool_calls") else FINISH[answer.ending]


def _num_prompt(asks: list[Ask]) -> int:
    """Tokens of all prompts, each counted once."""
    return sum(len(ask.tokens_T) for ask in asks if ask.choice == 0)


def _wanted(
    service: Service,
    request: web.Request,
    fields: Fields,
    id: str,
    terms: Terms,
    has_logprobs: bool,
) -> Wanted:
    """The rest of what a request asks for; refuses fields that nobody knows."""
    options = Fields(fields.mapping("stream_options"), "stream_options")
    has_ids, user = fields.flag("return_token_ids"), fields.text("user")
    fields.ignore(*NO_EFFECT)
    fields.done()
    return Wanted(
        id=id,
        terms=terms,
        has_logprobs=has_logprobs,
        has_ids=has_ids,
        has_usage=options.flag("include_usage"),
        session=service.session_of(request, user),
    )


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
