"""Text and tokens as clients see them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tandem.data.chat import render_messages
from tandem.errors import DataError
from tandem.server.branches import Conversation, Session, settings_and_messages
from tandem.server.faults import Refusal
from tandem.server.settings import Tokenizer
from tandem.server.terms import Terms
from tandem.types import Completion, Ending

BROKEN = "\ufffd"
"""Stands for bytes that are no whole character."""

_MARK = "[[7409-3315-8862]]"
"""Stands for a reply while the template is asked what follows it; nothing there to capitalise."""

Message = Mapping[str, Any]


class Words:
    """Turns prompts into tokens and completions into text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def tokens(self, text: str, *, adds_special: bool = False) -> np.ndarray:
        """The token ids of a text, int32 `[T]`."""
        ids = self._tokenizer(text, add_special_tokens=adds_special)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def decode(self, tokens: Sequence[int], *, skips_special: bool = False) -> str:
        """The text of these tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skips_special)

    def answer(self, completion: Completion, terms: Terms) -> str:
        """The text of a completion, without what ended it where the terms say so."""
        tokens, matched = completion.tokens_C.tolist(), completion.matched
        skips = terms.sampling.skip_special_tokens
        if not terms.trims_stop or completion.ending is not Ending.STOP:
            return self.decode(tokens, skips_special=skips)
        if isinstance(matched, str):
            text = self.decode(tokens, skips_special=skips)
            end = text.rfind(matched)
            return text[:end] if end >= 0 else text
        return self.decode(tokens[:-1], skips_special=skips)

    def settled(self, completion: Completion, terms: Terms) -> str:
        """The text of an unfinished completion that later tokens cannot change or take back."""
        text = self.decode(
            completion.tokens_C.tolist(), skips_special=terms.sampling.skip_special_tokens
        ).rstrip(BROKEN)
        if not terms.trims_stop:
            return text
        held = max((_overlap(text, stop) for stop in terms.sampling.stop), default=0)
        return text[: len(text) - held]

    def chat(
        self, messages: Sequence[Message], settings: Mapping[str, Any], *, session: Session | None
    ) -> tuple[np.ndarray, Conversation]:
        """The tokens that a reply continues, int32 `[T]`, and the conversation in comparable form.

        Where the session holds tokens of a beginning of this conversation they are taken as they
        are, and only what was said since is rendered: what the policy wrote is never tokenised
        again, however a template would write it now.
        """
        said = settings_and_messages(settings, [comparable(message) for message in messages])
        held = session and session.mark_of(said)
        if held:
            tokens_T, length = held
            tail = self._after(messages, length - 1, settings)
            if tail is not None:
                return _joined(tokens_T, tail), said
        return self.tokens(self._rendered(messages, settings)), said

    def _after(
        self, messages: Sequence[Message], count: int, settings: Mapping[str, Any]
    ) -> np.ndarray | None:
        """What the template writes after the text of message `count - 1`, as tokens.

        None where that cannot be told apart, so that the whole must be rendered.
        """
        marked = [*messages[: count - 1], {"role": "assistant", "content": _MARK}]
        try:
            text = self._rendered([*marked, *messages[count:]], settings)
        except Refusal:
            return None
        before, found, after = text.partition(_MARK)
        return self.tokens(after) if found and _MARK not in before + after else None

    def _rendered(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> str:
        if not self._tokenizer.chat_template:
            raise Refusal("this model has no chat template; use /v1/completions or /generate")
        kwargs = {"add_generation_prompt": True, **settings.get("chat_template_kwargs", {})}
        try:
            return render_messages(
                self._tokenizer,
                messages,
                tools=settings.get("tools"),
                where="messages",
                kwargs=kwargs,
            )
        except DataError as error:
            raise Refusal(str(error), param="messages") from error


def comparable(message: Message) -> str:
    """A message as it is compared with another: an assistant's without the space around it."""
    kept = {name: value for name, value in message.items() if value not in (None, [], {}, "")}
    if message["role"] == "assistant" and isinstance(kept.get("content"), str):
        kept["content"] = kept["content"].strip()
        kept = {name: value for name, value in kept.items() if value != ""}
    return json.dumps(kept, sort_keys=True)


def _joined(held_T: np.ndarray, tail_T: np.ndarray) -> np.ndarray:
    """Held tokens and what follows; a reply's end token that the template writes stands once."""
    if len(held_T) and len(tail_T) and held_T[-1] == tail_T[0]:
        tail_T = tail_T[1:]
    return np.concatenate([held_T, tail_T]).astype(np.int32)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text could be the beginning of the stop string."""
    longest = min(len(text), len(stop))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
