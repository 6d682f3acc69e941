"""What a server is given when it is made."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tandem.types import Completion, EngineStats, Request


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Where it listens, whom it answers, and what it says of the model."""

    model: str  # the name that clients see, and the path of the folder
    max_context: int  # tokens of prompt and answer together
    host: str = "127.0.0.1"
    port: int = 0  # 0: any that is free
    api_key: str | None = None  # None: everybody who reaches the port is answered
    max_body_bytes: int = 64 << 20
    max_choices: int = 1024  # answers that one request may ask for
    stream_interval: int = 8  # tokens between two events of a stream
    seed: int = 0  # of requests that bring none
    cuts_to_context: bool = False  # a request for more than fits gets what fits, not a refusal


class Samples(Protocol):
    """The part of an engine that the server needs; see `contracts.Engine`."""

    def add(self, request: Request) -> Awaitable[Completion]: ...

    async def abort(self, ids: Sequence[str] | None = None) -> None: ...

    def stats(self) -> EngineStats: ...

    def canary(self, tokens_T: np.ndarray) -> np.ndarray: ...


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the server needs."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
