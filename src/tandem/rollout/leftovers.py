"""Groups that were cut off, as bytes for a checkpoint: exact, and small enough for long answers.

8 bytes    length of the head
head       JSON, zlib: everything but the columns of samples
body       zlib: for all samples, tokens (int32), sampled (bits), log-probs (float32, where
           sampled), versions (int32, where sampled), experts (int16, of those that have them)
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from tandem.errors import CheckpointError
from tandem.types import NO_VERSION, Ending, Group, Prompt, Sample

FORMAT = 1
LEVEL = 1  # log-probs hardly shrink; more effort only takes longer

COLUMNS = ("tokens_T", "sampled_T", "logprobs_T", "version_T")
PLAIN_FIELDS = tuple(
    f.name for f in fields(Sample) if f.name not in (*COLUMNS, "experts_TLk", "ending")
)


def encode(groups: Sequence[Group]) -> bytes:
    """The groups as bytes; raises CheckpointError for metadata that is no JSON."""
    samples = [sample for group in groups for sample in group.samples]
    head = {"format": FORMAT, "groups": [_told(group) for group in groups]}
    try:
        text = json.dumps(head, default=_plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"an unfinished sample cannot be saved: {error}. Keep numbers, text, lists and "
            "dictionaries in labels and metadata"
        ) from error
    columns = [
        np.concatenate([np.zeros(0, np.int32), *(s.tokens_T.astype(np.int32) for s in samples)]),
        np.packbits(np.concatenate([np.zeros(0, bool), *(s.sampled_T for s in samples)])),
        np.concatenate([np.zeros(0, np.float32), *(s.logprobs_T[s.sampled_T] for s in samples)]),
        np.concatenate([np.zeros(0, np.int32), *(s.version_T[s.sampled_T] for s in samples)]),
        *(s.experts_TLk.astype(np.int16) for s in samples if s.experts_TLk is not None),
    ]
    packed_head = zlib.compress(text.encode(), LEVEL)
    body = zlib.compress(b"".join(column.tobytes() for column in columns), LEVEL)
    return len(packed_head).to_bytes(8, "little") + packed_head + body


def decode(data: bytes) -> tuple[Group, ...]:
    """The groups that `encode` was given; raises CheckpointError for bytes of another format."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(zlib.decompress(data[8 : 8 + size]))
    if head["format"] != FORMAT:
        raise CheckpointError(
            f"unfinished samples are in format {head['format']}, this version reads {FORMAT}"
        )
    body = memoryview(zlib.decompress(data[8 + size :]))
    lengths = [one["length"] for group in head["groups"] for one in group["samples"]]
    total = sum(lengths)
    tokens, body = _taken(body, np.int32, total)
    bits, body = _taken(body, np.uint8, -(-total // 8))
    sampled = np.unpackbits(bits, count=total).astype(bool)
    logprobs, version = np.zeros(total, np.float32), np.full(total, NO_VERSION, np.int32)
    logprobs[sampled], body = _taken(body, np.float32, int(sampled.sum()))
    version[sampled], body = _taken(body, np.int32, int(sampled.sum()))
    experts: list[np.ndarray | None] = []
    for sizes in (one.pop("experts", None) for group in head["groups"] for one in group["samples"]):
        chosen, body = _taken(body, np.int16, math.prod(sizes or (0,)))
        experts.append(None if sizes is None else chosen.reshape(sizes))
    assert not body, "bytes are left over after the last sample"
    stops = np.cumsum(lengths, dtype=int)[:-1]
    columns = [np.split(column, stops) for column in (tokens, sampled, logprobs, version)]
    rows = zip(*columns, experts, strict=True)
    return tuple(
        Group(
            prompt=_prompt(told["prompt"]),
            samples=tuple(_sample(one, next(rows)) for one in told["samples"]),
        )
        for told in head["groups"]
    )


def _told(group: Group) -> dict[str, Any]:
    prompt = group.prompt
    return {
        "prompt": {
            "index": prompt.index,
            "tokens": prompt.tokens_T.tolist(),
            "text": prompt.text,
            "content": prompt.content,
            "label": prompt.label,
            "metadata": dict(prompt.metadata),
        },
        "samples": [
            {"length": sample.num_tokens, "ending": sample.ending.value}
            | {name: getattr(sample, name) for name in PLAIN_FIELDS}
            | ({} if sample.experts_TLk is None else {"experts": sample.experts_TLk.shape})
            for sample in group.samples
        ],
    }


def _prompt(told: dict[str, Any]) -> Prompt:
    tokens_T = np.array(told.pop("tokens"), np.int32)
    return Prompt(tokens_T=tokens_T, **told)


def _sample(told: dict[str, Any], columns: tuple[np.ndarray | None, ...]) -> Sample:
    named: dict[str, Any] = {
        # a copy: a view would keep the columns of all samples alive
        **{
            name: None if column is None else column.copy()
            for name, column in zip((*COLUMNS, "experts_TLk"), columns, strict=True)
        },
        "ending": Ending(told.pop("ending")),
    }
    del told["length"]
    return Sample(**told, **named)


def _taken(data: memoryview, kind: type, count: int) -> tuple[np.ndarray, memoryview]:
    size = count * np.dtype(kind).itemsize
    return np.frombuffer(data[:size], kind), data[size:]


def _plain(value: Any) -> Any:
    """What JSON makes of mappings and numpy's values."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r:.80} is no JSON")
