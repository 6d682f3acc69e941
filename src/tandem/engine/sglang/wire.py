"""What goes to a server and what comes back, as JSON; nothing here waits or connects."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tandem.errors import EngineError
from tandem.types import Ending, SampleKey, Sampling

_ENDINGS = {"stop": Ending.STOP, "length": Ending.LENGTH, "abort": Ending.ABORT}


class Malformed(EngineError):
    """A reply that is not what a server of a known version says."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one request to a server added; C new tokens, of one weight version each part."""

    tokens_C: np.ndarray  # int32
    logprobs_C: np.ndarray  # float32
    ending: Ending
    matched: str | int | None
    num_cached: int
    version: str | None  # what the server said when it had ended


def generate_body(
    rid: str, tokens_T: np.ndarray, sampling: Sampling, key: SampleKey, *, written: int = 0
) -> dict[str, Any]:
    """The body of `/generate` for a sequence of which `written` new tokens are there already."""
    params: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens - written,
        "min_new_tokens": max(0, sampling.min_new_tokens - written),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "ignore_eos": sampling.ignore_eos,
        "skip_special_tokens": sampling.skip_special_tokens,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
        "sampling_seed": seed_of(key),
    }
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        params["stop_token_ids"] = list(sampling.stop_token_ids)
    return {
        "rid": rid,
        "input_ids": tokens_T.tolist(),
        "sampling_params": params,
        "return_logprob": sampling.want_logprobs,
    }


def seed_of(key: SampleKey) -> int:
    """A server's seed of one sequence, 31 bits; it mixes the place of each token in by itself.

    Used by servers with `--enable-deterministic-inference`; others draw from their own generator.
    """
    words = f"{key.seed},{key.prompt},{key.sample}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "little") >> 1


def read_part(reply: Any, *, wants_logprobs: bool) -> Part:
    """The tokens of a `/generate` reply; raises Malformed."""
    try:
        meta = reply["meta_info"]
        finish = meta["finish_reason"]
        ending = _ENDINGS[finish["type"]]
        pairs = meta.get("output_token_logprobs")
        if pairs is None and wants_logprobs and reply["output_ids"]:
            raise Malformed("a server gave tokens without log-probs, which were asked for")
        tokens = reply["output_ids"] if pairs is None else [pair[1] for pair in pairs]
        logprobs = [0.0] * len(tokens) if pairs is None else [pair[0] for pair in pairs]
        tokens_C = np.array(tokens, dtype=np.int32)
        logprobs_C = np.array(logprobs, dtype=np.float32)
        num_cached, version = int(meta.get("cached_tokens") or 0), meta.get("weight_version")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Malformed(
            f"a server answered /generate with something else than a completion "
            f"({type(error).__name__}: {error}): {shortened(reply)}"
        ) from error
    if np.isnan(logprobs_C).any():
        raise Malformed("a server gave log-probs that are no numbers; its weights may be garbage")
    return Part(
        tokens_C=tokens_C,
        logprobs_C=logprobs_C,
        ending=ending,
        matched=finish.get("matched"),
        num_cached=num_cached,
        version=None if version is None else str(version),
    )


def until_stop(part: Part, sampling: Sampling) -> Part:
    """The part up to the first stop token of the request's own.

    A server that ignores the model's end tokens ignores those of the request too, so what follows
    one is cut off here.
    """
    if not (sampling.ignore_eos and sampling.stop_token_ids):
        return part
    (found,) = np.isin(part.tokens_C, sampling.stop_token_ids).nonzero()
    if not len(found):
        return part
    end = int(found[0]) + 1
    return replace(
        part,
        tokens_C=part.tokens_C[:end],
        logprobs_C=part.logprobs_C[:end],
        ending=Ending.STOP,
        matched=int(part.tokens_C[end - 1]),
    )


def canary_body(tokens_T: np.ndarray) -> dict[str, Any]:
    """The body of `/generate` that asks for the log-probs of a sequence and for no new token."""
    return {
        "input_ids": tokens_T.tolist(),
        "sampling_params": {"temperature": 1.0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }


def read_canary(reply: Any, length: int) -> np.ndarray:
    """The log-prob of each token given those before it, `[T]`, 0 at the first; or Malformed."""
    try:
        logprobs = [pair[0] for pair in reply["meta_info"]["input_token_logprobs"]]
        logprobs_T = np.array([0.0, *logprobs[1:]], dtype=np.float32)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Malformed(f"a server gave no log-probs of a prompt: {shortened(reply)}") from error
    if len(logprobs_T) != length:
        raise Malformed(f"a server gave {len(logprobs_T)} log-probs of {length} tokens")
    return logprobs_T


def joined(parts: Sequence[Part], versions: Sequence[int]) -> dict[str, Any]:
    """The columns of a completion whose parts were sampled by these weight versions."""
    none_i, none_f = np.zeros(0, np.int32), np.zeros(0, np.float32)
    marks = [
        np.full(len(part.tokens_C), version, np.int32)
        for part, version in zip(parts, versions, strict=True)
    ]
    return {
        "tokens_C": np.concatenate([none_i, *(part.tokens_C for part in parts)]),
        "logprobs_C": np.concatenate([none_f, *(part.logprobs_C for part in parts)]),
        "version_C": np.concatenate([none_i, *marks]),
    }


def shortened(reply: Any, limit: int = 300) -> str:
    """The beginning of a reply, for an error."""
    text = reply if isinstance(reply, str) else repr(reply)
    return text if len(text) <= limit else text[:limit] + " ..."
