"""What stands around a reply of the world: nothing, or what the chat template puts there."""

from typing import Any, Protocol

from tandem.errors import HookError
from tandem.hooks.asking import tokenizer

MARK = "Zq7Zq"
"""Stands for a turn of the model while a template is rendered; no template holds it."""


class Frame(Protocol):
    """Puts replies between turns of the model."""

    def tokens(self, said: str, last: int) -> list[int]:
        """What lies between a turn whose last token is `last` and the next one."""


class Bare:
    """The reply as it is."""

    def tokens(self, said: str, last: int) -> list[int]:
        """The reply's tokens."""
        return list(tokenizer().encode(said, add_special_tokens=False))


class ChatFrame:
    """The reply as the tokenizer's chat template renders a message of this role.

    The template renders a conversation with a mark in the place of the model's turn; what follows
    the mark is the frame, up to and with the beginning of the model's next turn. Only that is
    tokenised: what the model wrote stays as it is. The token that ends a turn is in the frame
    unless the model has written it itself.
    """

    def __init__(self, role: str = "user", **template_kwargs: Any) -> None:
        """`template_kwargs` are the template's own, as `enable_thinking`."""
        self._role, self._kwargs = role, template_kwargs

    def tokens(self, said: str, last: int) -> list[int]:
        """The framed reply; raises HookError where the template does not keep a turn's text."""
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": MARK},
            {"role": self._role, "content": said},
        ]
        rendered = tokenizer().apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._kwargs
        )
        _, mark, frame = rendered.partition(MARK)
        if not mark:
            raise HookError(
                "the chat template does not show what an assistant said before, so replies cannot "
                "be put into it; pass a frame of your own to converse"
            )
        tokens = list(tokenizer().encode(frame, add_special_tokens=False))
        return tokens[1:] if tokens[:1] == [last] else tokens
