"""Weights through Ray's object store: what brings back an engine that missed an update."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from tandem.carriers.buckets import Bucket, Form, Named, buckets, tensors_of

Stored = tuple[Form, np.ndarray]
"""A bucket whose bytes Ray reads in place."""


def stored(named: Named, limit: int) -> Iterator[Stored]:
    """The tensors in their order, in buckets of at most `limit` bytes."""
    for bucket in buckets(named, limit):
        yield bucket.form, bucket.flat.cpu().numpy()


def from_store(found: Iterable[Stored]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in their order."""
    for form, flat in found:
        # a copy: nobody may write to the store's own memory
        yield from tensors_of(
            Bucket(form=form, flat=torch.frombuffer(bytearray(flat), dtype=torch.uint8))
        )
