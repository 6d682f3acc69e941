"""Checksums of many tensors in one Triton kernel.

A launch for each of a model's hundreds of tensors would take longer than reading them: instead a
table of addresses travels to the device once, and programs walk over pieces of all tensors.
"""

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels.digest import PIECE_WORDS

_PIECES_TOGETHER = 4  # of one program: half a megabyte
_BLOCK = 1024


def word_sums(tensors: list[Tensor]) -> Tensor:
    """For each tensor what `digest._word_sum` gives of its 8-byte words, `[tensors]` int64.

    All lie on one device, begin at a word, have whole words and no gaps.
    """
    places = tuple((tensor.data_ptr(), tensor.nbytes // 8) for tensor in tensors)
    pieces, sizes = _table(places, tensors[0].device)
    sums = sizes.clone()
    if pieces.numel():
        _sum_pieces[(pieces.shape[1],)](
            pieces, sums, pieces.shape[1], PIECE=PIECE_WORDS, PIECES=_PIECES_TOGETHER,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return sums


@functools.lru_cache(maxsize=8)
def _table(places: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What each program reads, and the words of each tensor.

    A row each for: address, number of words in the tensor, first word, owner. The same for as long
    as tensors lie where they are.
    """
    addresses, sizes = np.array(places, dtype=np.int64).T
    share = PIECE_WORDS * _PIECES_TOGETHER
    num_pieces = -(-sizes // share)
    owner = np.repeat(np.arange(len(places)), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    start = (np.arange(len(owner)) - first_piece[owner]) * share
    table = np.stack([addresses[owner], sizes[owner], start, owner])
    return _on_device(table, device), _on_device(sizes.copy(), device)


def _on_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":  # under Triton's interpreter
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # what is queued is not waited for


@triton.jit
def _multiplier(place):
    state = (place + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    return ((state ^ (state >> 29)) | 1).to(tl.int64, bitcast=True)


@triton.jit
def _sum_pieces(
    pieces_ptr, sums_ptr, num_programs, PIECE: tl.constexpr, PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    words_ptr = tl.load(pieces_ptr + program).to(tl.pointer_type(tl.int64))
    size = tl.load(pieces_ptr + num_programs + program)
    start = tl.load(pieces_ptr + 2 * num_programs + program)
    total = tl.zeros((), dtype=tl.int64)
    for piece in range(PIECES):
        first = start + piece * PIECE
        sums = tl.zeros((BLOCK,), dtype=tl.int64)
        for shift in range(0, PIECE, BLOCK):
            place = shift + tl.arange(0, BLOCK)
            word = tl.load(words_ptr + first + place, mask=first + place < size, other=0)
            sums += word * _multiplier(place.to(tl.int64))
        total += tl.sum(sums, axis=0) * _multiplier(first // PIECE)
    # sums of integers do not depend on their order
    tl.atomic_add(sums_ptr + tl.load(pieces_ptr + 3 * num_programs + program), total)
