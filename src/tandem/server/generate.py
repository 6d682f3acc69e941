"""`/generate`, with SGLang's fields and replies."""

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import web

from tandem.server.desk import Ask
from tandem.server.faults import Refusal
from tandem.server.fields import Fields, is_whole
from tandem.server.replies import logprob_rows, meta_info
from tandem.server.service import Service, new_id, read_json
from tandem.server.streams import growths, send_events
from tandem.server.terms import Terms, sglang_terms
from tandem.types import Completion

NO_EFFECT = ("return_prompt_token_ids", "log_metrics", "background", "priority", "routing_key")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wanted:
    """One prompt of a request, and what is to be said of its answers."""

    id: str
    tokens_T: np.ndarray
    terms: Terms
    returns_logprobs: bool
    returns_texts: bool  # beside the log-probs
    logprob_start: int  # of the prompt; negative: none of it


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Place:
    """One answer of a request: the prompt it is for, and the ask that is out for it."""

    wanted: Wanted
    ask: Ask


async def generate(service: Service, request: web.Request) -> web.StreamResponse:
    """One object, or a list where the request has several prompts or answers."""
    fields = Fields(await read_json(request))
    is_streamed = fields.flag("stream")
    wanted, is_batch = read_wanted(service, fields)
    if is_streamed:
        return await send_events(request, _events(service, request, wanted, is_batch))
    with ExitStack() as stack:
        places = _asked(service, request, wanted, stack)
        answers = await service.desk.answers([place.ask for place in places])
        bodies = [
            _body(service, place.wanted, answer)
            for place, answer in zip(places, answers, strict=True)
        ]
    return web.json_response(bodies if is_batch else bodies[0])


def read_wanted(service: Service, fields: Fields) -> tuple[list[Wanted], bool]:
    """Every prompt of the request, and whether the reply is a list; raises Refusal."""
    prompts, is_list = _prompts(service, fields)
    many = len(prompts)
    params = _spread(fields.take("sampling_params"), many, "sampling_params")
    ids = _spread(fields.take("rid"), many, "rid")
    with_logprobs = _spread(fields.take("return_logprob", False), many, "return_logprob")
    starts = _spread(fields.take("logprob_start_len", -1), many, "logprob_start_len")
    returns_texts = fields.flag("return_text_in_logprobs")
    fields.only("top_logprobs_num", 0, [0] * many, why="only the chosen token's is known")
    fields.ignore(*NO_EFFECT)
    fields.done()
    wanted = []
    for place, tokens_T in enumerate(prompts):
        start = starts[place]
        if not is_whole(start):
            raise Refusal(f"logprob_start_len is {start!r}; wanted is a whole number")
        has_logprobs = bool(with_logprobs[place])
        wanted.append(
            Wanted(
                id=ids[place] or new_id(),
                tokens_T=tokens_T,
                terms=sglang_terms(params[place]),
                returns_logprobs=has_logprobs,
                returns_texts=returns_texts,
                logprob_start=start if has_logprobs else -1,
            )
        )
    return wanted, is_list or any(one.terms.num_choices > 1 for one in wanted)


def _prompts(service: Service, fields: Fields) -> tuple[list[np.ndarray], bool]:
    ids, text = fields.take("input_ids"), fields.take("text")
    if (ids is None) == (text is None):
        raise Refusal("give either input_ids or text")
    if text is not None:
        texts = text if isinstance(text, list) else [text]
        if not texts or not all(isinstance(one, str) for one in texts):
            raise Refusal("text is to be a string or a list of strings", param="text")
        prompts = [service.words.tokens(one, adds_special=True) for one in texts]
        return prompts, isinstance(text, list)
    is_list = isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)
    return [token_ids(one, "input_ids") for one in (ids if is_list else [ids])], is_list


def token_ids(value: Any, name: str) -> np.ndarray:
    """A list of token ids as int32 `[T]`; raises Refusal."""
    is_right = isinstance(value, list) and all(map(is_whole, value))
    if not is_right or not all(0 <= one < 1 << 31 for one in value):
        raise Refusal(f"{name} is to be a list of token ids", param=name)
    return np.asarray(value, dtype=np.int32)


def _spread(value: Any, many: int, name: str) -> list[Any]:
    """One value for each prompt, from one value or a list of them."""
    if not isinstance(value, list):
        if name == "rid" and value is not None and many > 1:
            return [f"{value}_{place}" for place in range(many)]
        return [value] * many
    if len(value) != many:
        raise Refusal(f"{name} has {len(value)} entries for {many} prompts", param=name)
    return value


def _asked(
    service: Service, request: web.Request, wanted: list[Wanted], stack: ExitStack
) -> list[Place]:
    """The answers of all prompts, prompt by prompt."""
    session = service.session_of(request)
    places = []
    for one in wanted:
        if not isinstance(one.id, str):
            raise Refusal(f"rid is {one.id!r}; a string is wanted", param="rid")
        asks = service.desk.asks(one.tokens_T, one.terms, id=one.id, session=session)
        places += [Place(wanted=one, ask=ask) for ask in stack.enter_context(asks)]
    return places


async def _events(
    service: Service, request: web.Request, wanted: list[Wanted], is_batch: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Each answer as far as it is, whenever one has grown."""
    with ExitStack() as stack:
        places = _asked(service, request, wanted, stack)
        asks = [place.ask for place in places]
        stream = growths(service.desk, asks, interval=service.settings.stream_interval)
        async with aclosing(stream):
            async for index, completion, is_last in stream:
                body = _body(service, places[index].wanted, completion, is_last=is_last)
                yield {**body, "index": index} if is_batch else body


def _body(
    service: Service, wanted: Wanted, completion: Completion, *, is_last: bool = True
) -> dict[str, Any]:
    words, terms = service.words, wanted.terms
    meta = meta_info(
        completion,
        id=wanted.id,
        num_prompt=len(wanted.tokens_T),
        version=service.engine.stats().version,
    )
    if not is_last:
        meta["finish_reason"] = None
    if wanted.returns_logprobs:
        rows = logprob_rows(completion, words if wanted.returns_texts else None)
        meta["input_token_logprobs"] = _input_rows(service, wanted) if is_last else []
        meta["output_token_logprobs"] = rows
        meta["output_token_logprobs_length"] = len(rows)
    text = words.answer(completion, terms) if is_last else words.settled(completion, terms)
    return {"text": text, "output_ids": completion.tokens_C.tolist(), "meta_info": meta}


def _input_rows(service: Service, wanted: Wanted) -> list[list[Any]]:
    """Log-probs of the prompt's tokens from the asked place on; the first has none.

    They are those of temperature 1 and of the weights that are there at the end.
    """
    start, tokens_T = wanted.logprob_start, wanted.tokens_T
    if start < 0 or start >= len(tokens_T):
        return []
    logprobs_T = service.engine.canary(tokens_T).tolist()
    rows: list[list[Any]] = []
    for place in range(start, len(tokens_T)):
        token = int(tokens_T[place])
        text = service.words.decode([token]) if wanted.returns_texts else None
        rows.append([None if place == start else logprobs_T[place], token, text])
    return rows
