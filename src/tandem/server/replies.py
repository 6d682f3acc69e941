"""Answers in the shape that clients read."""

import time
from typing import Any

from tandem.server.words import Words
from tandem.types import Completion, Ending

FINISH = {Ending.STOP: "stop", Ending.LENGTH: "length", Ending.ABORT: "abort"}


def meta_info(completion: Completion, *, id: str, num_prompt: int, version: int) -> dict[str, Any]:
    """SGLang's `meta_info`, and `output_versions`: the weights that chose each token.

    `weight_version` is that of the last token, as SGLang has it.
    """
    versions = completion.version_C.tolist()
    return {
        "id": id,
        "finish_reason": sglang_finish(completion),
        "prompt_tokens": num_prompt,
        "completion_tokens": len(versions),
        "cached_tokens": completion.num_cached,
        "weight_version": str(versions[-1] if versions else version),
        "output_versions": versions,
    }


def sglang_finish(completion: Completion) -> dict[str, Any] | None:
    """How it ended, in SGLang's words."""
    if completion.ending is Ending.STOP:
        return {"type": "stop", "matched": completion.matched}
    if completion.ending is Ending.LENGTH:
        return {"type": "length", "length": len(completion.tokens_C)}
    return {"type": "abort", "message": completion.error or "aborted", "status_code": None}


def logprob_rows(completion: Completion, words: Words | None) -> list[list[Any]]:
    """`[log-prob, token id, text or null]` of each new token; text where `words` are given."""
    tokens = completion.tokens_C.tolist()
    return [
        [logprob, token, words.decode([token]) if words else None]
        for logprob, token in zip(completion.logprobs_C.tolist(), tokens, strict=True)
    ]


def chat_logprobs(completion: Completion, words: Words, start: int = 0) -> dict[str, Any]:
    """OpenAI's log-probs of the new tokens from place `start` on, as chat replies have them."""
    rows = logprob_rows(completion, words)[start:]
    return {
        "content": [
            {
                "token": text,
                "logprob": logprob,
                "bytes": list(text.encode()),
                "top_logprobs": [],
            }
            for logprob, _, text in rows
        ],
        "refusal": None,
    }


def text_logprobs(completion: Completion, words: Words, start: int = 0) -> dict[str, Any]:
    """The same as text completions have them."""
    rows = logprob_rows(completion, words)
    offsets, offset = [], 0
    for _, _, text in rows:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": [text for _, _, text in rows[start:]],
        "token_logprobs": [logprob for logprob, _, _ in rows[start:]],
        "top_logprobs": None,
        "text_offset": offsets[start:],
    }


def usage(num_prompt: int, completions: list[Completion]) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    num_written = sum(len(one.tokens_C) for one in completions)
    num_cached = max((one.num_cached for one in completions), default=0)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_written,
        "total_tokens": num_prompt + num_written,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def envelope(kind: str, id: str, model: str, **rest: Any) -> dict[str, Any]:
    """What every OpenAI answer begins with, and the rest."""
    return {"id": id, "object": kind, "created": int(time.time()), "model": model, **rest}
