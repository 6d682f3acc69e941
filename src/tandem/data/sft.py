"""Tokens and loss masks of supervised conversations: only what the assistant says is learned.

The mask types are the dialect's (`--loss-mask-type`, dialect section 3.11). Every turn is rendered
on its own and tokenised on its own, and an assistant turn is cut where the generation prompt ends,
so the trained tokens are the ones that the policy would have sampled there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tandem.data.chat import Template, render_messages
from tandem.data.questions import Question
from tandem.errors import ConfigError, DataError
from tandem.types import Prompt

Message = Mapping[str, Any]
Turn = Sequence[Message]
Tools = Sequence[Mapping[str, Any]] | None

Render = Callable[..., str]
"""Renders a turn, with `tools` and further arguments of the chat template if any."""

PROBE: Message = {"role": "user", "content": "PROBE"}
"""A turn that is rendered beside others to see what the template writes around them."""


class Masked(NamedTuple):
    """A supervised sequence; `mask_T` is True on the tokens to learn."""

    tokens_T: np.ndarray  # int32
    mask_T: np.ndarray  # bool


def mask_question(
    tokenizer: Any,
    prompt: Prompt,
    *,
    mask_type: str = "qwen",
    apply_chat_template: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> Masked:
    """The supervised sequence of a prompt: a conversation, or a string whose label is the answer.

    Raises DataError where a string has no label of type str to learn.
    """
    where = f"prompt {prompt.index}"
    if not isinstance(prompt.content, str):
        tools = prompt.metadata.get("tools")
        return mask_conversation(
            tokenizer, prompt.content, tools=tools, mask_type=mask_type, kwargs=kwargs
        )
    if not isinstance(prompt.label, str):
        raise DataError(
            f"{where}: a string prompt needs the text to learn as its label, "
            f"which is {prompt.label!r}; set --label-key, or give a list of messages"
        )
    template = Template(
        tokenizer=tokenizer, apply_chat_template=apply_chat_template, kwargs=kwargs or {}
    )
    text = template.render(Question(content=prompt.content, where=where))
    return mask_response(tokenizer, text, prompt.label)


def mask_response(tokenizer: Any, prompt: str, response: str) -> Masked:
    """A rendered prompt followed by its response; the end token is learned with the response."""
    end = tokenizer.eos_token or ""
    if response.endswith(end):
        end = ""
    return _joined(tokenizer, [(prompt, False), (response + end, True)])


def mask_conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    mask_type: str = "qwen",
    kwargs: Mapping[str, Any] | None = None,
) -> Masked:
    """The conversation's tokens, the assistant's marked to be learned.

    `qwen` renders each turn alone and takes the default system prompt off later ones; `qwen3`
    renders each turn after a probe, so that a thinking template keeps every turn's thoughts;
    `distill_qwen` learns the last message, raw, after the first one. Replies of tools in a row are
    one turn. A message whose `step_loss_mask` is not 1 is not learned.
    """
    if mask_type == "qwen3_5":
        raise ConfigError(
            "--loss-mask-type qwen3_5 is not there yet; qwen3 renders thinking templates too"
        )
    if not any(message.get("role") == "assistant" for message in messages):
        raise DataError("the conversation has no assistant message, so there is nothing to learn")

    def render(turn: Turn, tools: Tools = None, **more: Any) -> str:
        return render_messages(tokenizer, turn, tools=tools, kwargs={**(kwargs or {}), **more})

    if mask_type == "distill_qwen":
        return _joined(tokenizer, _last_answer(messages, tools, render))
    if mask_type not in LATER_TURNS:
        raise ConfigError(f"--loss-mask-type {mask_type} is unknown; try qwen or qwen3")
    first, *later = _turns(messages)
    text_of = LATER_TURNS[mask_type](render)
    texts = [render(first, tools), *map(text_of, later)]
    opening = _opening(render)
    pieces: list[tuple[str, bool]] = []
    for turn, text in zip([first, *later], texts, strict=True):
        pieces += _learned(turn, text, opening)
    return _joined(tokenizer, pieces)


def _last_answer(messages: Turn, tools: Tools, render: Render) -> list[tuple[str, bool]]:
    first, last = messages[0], messages[-1]
    if len(messages) < 2 or last.get("role") != "assistant":
        raise DataError("--loss-mask-type distill_qwen wants a question and, last, its answer")
    prompt = render([first], tools, add_generation_prompt=True)
    return [(prompt, False), (last.get("content") or "", _is_learned(last))]


def _alone(render: Render) -> Callable[[Turn], str]:
    """Gives the text of a later turn without the system prompt that the template adds to it."""
    once, twice = render([PROBE]), render([PROBE, PROBE])
    default_system = once.removesuffix(twice[len(once) :])

    def text(turn: Turn) -> str:
        whole = render(turn)
        return whole if turn[0].get("role") == "system" else whole.removeprefix(default_system)

    return text


def _after_probe(render: Render) -> Callable[[Turn], str]:
    """Gives the text that the template writes for a later turn behind a user's turn."""
    before = render([PROBE])

    def text(turn: Turn) -> str:
        both = render([PROBE, *turn])
        if not both.startswith(before):
            raise ConfigError(
                "--loss-mask-type qwen3 does not fit this chat template: what it writes for a "
                "turn changes the turn before it; try qwen"
            )
        return both[len(before) :]

    return text


LATER_TURNS = {"qwen": _alone, "qwen3": _after_probe}
"""By `--loss-mask-type`: how turns behind the first are rendered."""


def _turns(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The messages, with replies of tools that follow each other as one turn."""
    turns: list[list[Message]] = []
    for message in messages:
        if message.get("role") == "tool" and turns and turns[-1][-1].get("role") == "tool":
            turns[-1].append(message)
        else:
            turns.append([message])
    return list(turns)


def _opening(render: Render) -> str:
    """What the template writes before the policy begins to speak."""
    closed, opened = render([PROBE]), render([PROBE], add_generation_prompt=True)
    if not opened.startswith(closed) or opened == closed:
        raise ConfigError("the chat template writes no generation prompt, so turns cannot be found")
    return opened[len(closed) :]


def _learned(turn: Sequence[Message], text: str, opening: str) -> list[tuple[str, bool]]:
    message = turn[0]
    if message.get("role") != "assistant" or not _is_learned(message):
        return [(text, False)]
    before, mark, after = text.partition(opening)
    if not mark or before:
        raise ConfigError(
            f"the chat template begins an assistant turn with {text[: len(opening)]!r} and prompts "
            f"for one with {opening!r}; another --loss-mask-type or other chat template "
            "arguments are needed to tell what is learned"
        )
    return [(mark, False), (after, True)]


def _is_learned(message: Message) -> bool:
    return message.get("step_loss_mask", 1) == 1


def _joined(tokenizer: Any, pieces: Sequence[tuple[str, bool]]) -> Masked:
    tokens = Template(tokenizer=tokenizer).tokens([text for text, _ in pieces])
    masks = [
        np.full(len(tokens_T), is_learned)
        for tokens_T, (_, is_learned) in zip(tokens, pieces, strict=True)
    ]
    return Masked(tokens_T=np.concatenate(tokens), mask_T=np.concatenate(masks))
