"""Where a kernel runs: plain torch, or fused by Triton."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

FLASH_4_HEADS = (64, 96, 128)
"""Head sizes whose backward pass FlashAttention 4 serves on Hopper."""

ORDERED_HEADS = (16, 32, 64, 128, 256)
"""Head sizes that our attention serves: a tensor core takes no less, Triton powers of two."""

KEYS_TOGETHER = 64
"""Keys that our attention folds together; a prefix that rows share ends where such a block does."""


def is_fused(tensor: Tensor) -> bool:
    """Whether Triton kernels serve this tensor: it lies on CUDA and Triton is installed.

    With `TRITON_INTERPRET=1` CPU tensors are served too, by Triton's interpreter: slow, for tests.
    """
    if tensor.is_cuda:
        return has_triton()
    return _is_interpreted() and tensor.device.type == "cpu" and has_triton()


def is_half(tensor: Tensor) -> bool:
    """Whether the tensor is in bf16 or fp16, which flash attention wants."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def has_flash_attention_4() -> bool:
    """Whether FlashAttention 4 (`flash_attn.cute`, wheel `flash-attn-4`) can be imported."""
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether it is of the generation on which bits of our products were compared with cuBLAS's,
    and whose shared memory holds their tiles."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def num_programs(device: torch.device, per_sm: int) -> int:
    """How many programs fill the device when each multiprocessor holds `per_sm` of them."""
    return per_sm * _num_sms(device)


@functools.cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # under the interpreter: few, so that loops over items do loop
    return torch.cuda.get_device_properties(device).multi_processor_count


def repeat_gradients() -> None:
    """Makes CUDA's backward passes give the same bits every time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
