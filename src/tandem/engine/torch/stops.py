"""When a sequence has ended, from its newest token."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from tandem.errors import EngineError
from tandem.types import Sampling

_SLACK = 8
"""Tokens before a stop string that are decoded too: a tokenizer may treat its first one apart."""

_BROKEN = "\ufffd"
"""Stands for bytes that are no whole character."""


class Decodes(Protocol):
    """The part of a tokenizer that finding stop strings needs."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


class Stops:
    """Finds stop tokens and stop strings.

    Stop strings are looked for in what was written, now or before an interruption
    (`Request.num_written`), not in prompts, and a match may end inside the newest token's text.
    Only the tail is decoded, and only after a token whose own text holds the last character of a
    stop string.
    """

    def __init__(self, tokenizer: Decodes | None, eos_token_ids: Iterable[int]) -> None:
        self.eos_token_ids = tuple(eos_token_ids)
        self._eos = np.array(sorted(self.eos_token_ids), dtype=np.int32)
        self._tokenizer = tokenizer
        self._text_of: dict[tuple[int, bool], str] = {}

    def check(self, sampling: Sampling) -> None:
        """Raises EngineError if a stop string is asked for without a tokenizer to find it."""
        if sampling.stop and self._tokenizer is None:
            raise EngineError(
                f"stop strings {list(sampling.stop)} need text, but the engine was made without a "
                "tokenizer; give it one, or use stop token ids"
            )

    def forbidden(self, sampling: Sampling) -> list[int]:
        """The tokens that would end a sequence and may not before its least length."""
        eos = () if sampling.ignore_eos else self.eos_token_ids
        return sorted({*eos, *sampling.stop_token_ids})

    def is_eos(self, tokens_R: np.ndarray) -> np.ndarray:
        """Which tokens are end tokens of the model."""
        return np.isin(tokens_R, self._eos)

    def matched(self, sampling: Sampling, tokens_C: np.ndarray) -> str | int | None:
        """The stop token or stop string of the request's own that the newest token completes."""
        newest = int(tokens_C[-1])
        if newest in sampling.stop_token_ids:
            return newest
        for stop in sampling.stop:
            if self._may_complete(newest, stop, sampling) and stop in self._tail(
                tokens_C, stop, sampling
            ):
                return stop
        return None

    def _may_complete(self, token: int, stop: str, sampling: Sampling) -> bool:
        at = (token, sampling.skip_special_tokens)
        if at not in self._text_of:
            self._text_of[at] = self._decode([token], sampling)
        text = self._text_of[at]
        return stop[-1] in text or _BROKEN in text

    def _tail(self, tokens_C: np.ndarray, stop: str, sampling: Sampling) -> str:
        # a token that gives text gives a byte or more
        window = len(stop.encode()) + _SLACK
        return self._decode(tokens_C[-window:].tolist(), sampling)

    def _decode(self, tokens: list[int], sampling: Sampling) -> str:
        assert self._tokenizer is not None, "stop strings were not checked"
        return self._tokenizer.decode(tokens, skip_special_tokens=sampling.skip_special_tokens)
