"""Conversations of several turns: the model writes, the world replies, and so on."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tandem.hooks.asking import generate, tokenizer
from tandem.hooks.view import DialectSample, DialectStatus
from tandem.rollout.frames import Bare, Frame

TURNS = "turns"
"""In a sample's metadata: where each finished turn of the model begins and ends in `tokens`."""

LATE = "out_of_time"

BARE = Bare()


class Environment(Protocol):
    """What the model talks to: a tool, a game, another model."""

    async def reply(self, text: str) -> str | None:
        """What it says to a turn of the model; None ends the conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Where a conversation ends, if it does not end by itself; it is then truncated."""

    turns: int = 8  # of the model
    turn_tokens: int | None = None  # of one turn
    tokens: int | None = None  # of the whole response, replies included
    seconds: float = 600.0  # of one rollout


async def converse(
    args: Any,
    sample: DialectSample,
    sampling_params: Mapping[str, Any],
    new_environment: Callable[[], Environment],
    limits: Limits,
    *,
    frame: Frame = BARE,
) -> DialectSample:
    """The sample with the whole conversation, for use inside a generate function.

    What the model wrote is kept token by token; replies are tokenised on their own, as `frame` puts
    them (`frames.ChatFrame`: as the chat template does), and not trained. The model's tokens count
    toward `max_new_tokens` over all turns.

    A conversation that was cut off goes on where it was: a new environment hears its finished turns
    again. If it replies otherwise than before, the conversation begins anew.
    """
    environment = await _resumed(sample, new_environment, frame)
    turns = sample.metadata.setdefault(TURNS, [])
    begin = turns[-1][1] + _num_replied(sample, turns[-1][1]) if turns else _num_asked(sample)
    try:
        async with asyncio.timeout(limits.seconds):
            while len(turns) < limits.turns:
                if not await _write(args, sample, sampling_params, limits, begin):
                    break
                turns.append([begin, len(sample.tokens)])
                asked_s = time.monotonic()
                said = await environment.reply(_text(sample, begin))
                sample.non_generation_time += time.monotonic() - asked_s
                if said is None:
                    return sample
                if len(turns) < limits.turns:
                    _append_reply(args, sample, frame.tokens(said, sample.tokens[-1]))
                begin = len(sample.tokens)
    except TimeoutError:
        sample.metadata[LATE] = True
        sample.status = DialectStatus.TRUNCATED
    if sample.status != DialectStatus.ABORTED:
        sample.status = DialectStatus.TRUNCATED
    return sample


async def _write(
    args: Any, sample: DialectSample, params: Mapping[str, Any], limits: Limits, begin: int
) -> bool:
    """Lets the model go on with its turn; whether it has finished it."""
    room = params["max_new_tokens"] - sum(sample.loss_mask or ())
    if limits.tokens is not None:
        room = min(room, limits.tokens - sample.response_length)
    of_turn = (
        None if limits.turn_tokens is None else limits.turn_tokens - (len(sample.tokens) - begin)
    )
    count = room if of_turn is None else min(room, of_turn)
    if count <= 0:
        return room > 0
    answer = await generate(sample.tokens, {**params, "max_new_tokens": count})
    told = answer["meta_info"]
    logprobs = [logprob for logprob, _ in told["output_token_logprobs"]]
    sample.append_response_tokens(
        args, answer["output_ids"], logprobs, meta_info=told, text=answer["text"]
    )
    if sample.status == DialectStatus.TRUNCATED and of_turn is not None and of_turn <= room:
        sample.status = DialectStatus.COMPLETED  # the turn is full, the conversation is not
    return sample.status == DialectStatus.COMPLETED


def _append_reply(args: Any, sample: DialectSample, tokens: list[int]) -> None:
    sample.append_response_tokens(
        args, tokens, trainable=False, text=tokenizer().decode(tokens, skip_special_tokens=False)
    )


async def _resumed(
    sample: DialectSample, new_environment: Callable[[], Environment], frame: Frame
) -> Environment:
    """An environment that knows what was said before, or a new one and the sample begun anew."""
    environment = new_environment()
    for begin, end in sample.metadata.get(TURNS, ()):
        said = await environment.reply(_text(sample, begin, end))
        tokens = frame.tokens(said, sample.tokens[end - 1]) if said is not None else None
        if tokens is None or sample.tokens[end : end + len(tokens)] != tokens:
            _begin_anew(sample)
            return new_environment()
    return environment


def _begin_anew(sample: DialectSample) -> None:
    del sample.tokens[_num_asked(sample) :]
    sample.response, sample.response_length = "", 0
    sample.loss_mask = sample.rollout_log_probs = None
    sample.metadata.pop(TURNS, None)


def _num_asked(sample: DialectSample) -> int:
    return len(sample.tokens) - sample.response_length


def _num_replied(sample: DialectSample, place: int) -> int:
    """Tokens of the reply that begins at this place."""
    mask = (sample.loss_mask or [])[place - _num_asked(sample) :]
    return next((nth for nth, trained in enumerate(mask) if trained), len(mask))


def _text(sample: DialectSample, begin: int, end: int | None = None) -> str:
    return tokenizer().decode(sample.tokens[begin:end], skip_special_tokens=True)
