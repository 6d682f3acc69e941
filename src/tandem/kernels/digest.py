"""Checksums of tensors, computed where they lie."""

from collections.abc import Iterable

import torch
from torch import Tensor

from tandem.kernels.device import is_fused
from tandem.kernels.later import Later
from tandem.types import Digests

PIECE_WORDS = 1 << 14
"""Words whose multipliers follow from their place in the piece; 128 KB stay in a CPU's cache."""
_ALL = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def tensor_digest(tensor: Tensor) -> int:
    """A 64-bit checksum of the tensor's bytes in logical order, with one wait for the device.

    The sum, modulo 2^64, of the number of words and of each 8-byte word times two odd multipliers,
    hashed from its piece and from its place in the piece. So it is the same on every device and for
    every stride, any change of one word changes it, and an exchange of two words does too (but for
    a vanishing chance). It guards against accidents, not against adversaries.
    """
    return digest_all([("", tensor)])[""]


def digest_all(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The digest of every tensor by its name, with one wait for the device at the end."""
    return dict(start_digests(named))


def start_digests(named: Iterable[tuple[str, Tensor]]) -> Digests:
    """The digest of every tensor as it is now, by its name; the device computes them meanwhile.

    On CUDA one kernel reads all of them, at the speed of the memory.
    """
    tensors = dict(named)
    if not tensors:
        return Digests(dict)
    device = next(iter(tensors.values())).device
    if all(is_fused(tensor) and tensor.device == device for tensor in tensors.values()):
        from tandem.kernels.cuda import digest as fused

        sums = fused.word_sums([_readable(tensor) for tensor in tensors.values()])
    else:
        words = [_words(tensor.detach()) for tensor in tensors.values()]
        sums = torch.stack([_word_sum(word).to(device) for word in words])
    names, coming = tuple(tensors), Later(sums)

    def read() -> dict[str, int]:
        (totals,) = coming.read()
        return {name: total & _ALL for name, total in zip(names, totals.tolist(), strict=True)}

    return Digests(read)


def _readable(tensor: Tensor) -> Tensor:
    """A tensor whose memory, read from its beginning, is the words."""
    if tensor.is_contiguous() and not (tensor.nbytes % 8 or tensor.data_ptr() % 8):
        return tensor
    return _words(tensor.detach())


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as int64 words, the last one filled up with zeros."""
    flat = tensor.contiguous().view(-1)
    if flat.element_size() * flat.numel() % 8:
        flat = flat.view(torch.uint8)
        flat = torch.cat([flat, flat.new_zeros(-flat.numel() % 8)])
    elif flat.element_size() * flat.storage_offset() % 8:
        flat = flat.clone()  # a view as words must begin at a word
    return flat.view(torch.int64)


def _word_sum(words: Tensor) -> Tensor:
    total = torch.full((), words.numel(), dtype=torch.int64, device=words.device)
    multiplier = _multiplier(torch.arange(PIECE_WORDS, device=words.device))
    pieces = words.split(PIECE_WORDS)
    for factor, piece in zip(_multiplier(torch.arange(len(pieces))).tolist(), pieces, strict=True):
        total += factor * (piece * multiplier[: len(piece)]).sum()
    return total


def _multiplier(place: Tensor) -> Tensor:
    """An odd int64 for each place; the shift keeps it from being linear in the place."""
    state = (place + 1) * (_STEP - (1 << 64))
    return (state ^ ((state >> 29) & ((1 << 35) - 1))) | 1
