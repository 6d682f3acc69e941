"""Checksums of tensors, computed where they lie."""

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 26  # bounds the temporaries to a few hundred MB whatever the tensor
_ALL = (1 << 64) - 1
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def tensor_digest(tensor: Tensor) -> int:
    """A 64-bit checksum of the tensor's bytes in logical order, with one wait for the device.

    The sum, modulo 2^64, of each 4-byte word times an odd multiplier hashed from its place. So it
    is the same on every device and for every stride, a change of any one word always changes it,
    and an exchange of two words does too (but for one chance in 2^63). Not for adversaries.
    """
    return int(_digest(tensor).item()) & _ALL


def digest_all(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The digest of every tensor by its name, with one wait for the device at the end."""
    names, sums = [], []
    for name, tensor in named:
        names.append(name)
        sums.append(_digest(tensor))
    if not sums:
        return {}
    together = torch.stack([total.to(sums[0].device) for total in sums])
    return {name: word & _ALL for name, word in zip(names, together.tolist(), strict=True)}


def _digest(tensor: Tensor) -> Tensor:
    words = _words(tensor.detach())
    total = torch.full((), words.numel(), dtype=torch.int64, device=tensor.device)
    step = _CHUNK_BYTES // 4
    for start in range(0, words.numel(), step):
        part = words[start : start + step]
        place = torch.arange(start, start + len(part), device=tensor.device)
        total += (part.long() * _multiplier(place)).sum()
    return total


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as int32 words, the last one filled up with zeros."""
    flat = tensor.contiguous().view(-1)
    if flat.element_size() * flat.numel() % 4:
        flat = flat.view(torch.uint8)
        flat = torch.cat([flat, flat.new_zeros(-flat.numel() % 4)])
    elif flat.element_size() * flat.storage_offset() % 4:
        flat = flat.clone()  # a view as words must begin at a word
    return flat.view(torch.int32)


def _multiplier(place: Tensor) -> Tensor:
    """An odd int64 for each place (a finaliser in the manner of splitmix64)."""
    step, first, second = (word - (1 << 64) for word in _ODD)
    state = (place + 1) * step
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * first
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * second
    return (state ^ ((state >> 31) & ((1 << 33) - 1))) | 1
