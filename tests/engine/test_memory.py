"""The cache is as large as it was asked to be, or as memory allows."""

import dataclasses

import pytest
import torch

from tandem.config import EngineConfig
from tandem.engine.torch.memory import (
    CPU_CACHE_BYTES,
    device_cache_bytes,
    num_cache_blocks,
    token_bytes,
)
from tandem.errors import ResourceError

CPU = torch.device("cpu")


def blocks(decoder, **settings):
    return num_cache_blocks(EngineConfig(**settings), decoder.shape, torch.float32, CPU)


def test_a_token_takes_its_keys_and_values_in_all_layers(decoder):
    assert token_bytes(decoder.shape, torch.float32) == 2 * 2 * 2 * 8 * 4


def test_the_asked_size_is_rounded_down_to_blocks(decoder):
    assert blocks(decoder, engine_cache_tokens=100, engine_block_size=16) == 6


def test_unasked_a_small_engine_takes_what_it_can_ever_need(decoder):
    assert blocks(decoder, engine_max_running=4, engine_block_size=16) == 4 * 512 // 16


def test_unasked_a_large_one_takes_the_limit_of_the_cpu(decoder):
    large = dataclasses.replace(decoder.shape, max_positions=1 << 20)
    cfg = EngineConfig(engine_block_size=16)
    size = token_bytes(large, torch.float32) * 16
    assert num_cache_blocks(cfg, large, torch.float32, CPU) == CPU_CACHE_BYTES // size


def test_a_cache_below_one_block_is_refused_with_numbers(decoder):
    with pytest.raises(ResourceError, match="hold 10 tokens of 256 bytes, less than one block of"):
        blocks(decoder, engine_cache_tokens=10)


def test_the_share_of_a_device_counts_what_the_process_holds_already():
    gib = 1 << 30
    assert device_cache_bytes(0.7, total=100 * gib, free=90 * gib, held=10 * gib) == 60 * gib
    # somebody else holds 40 GiB: the 30 GiB that the share leaves alone stay free
    assert device_cache_bytes(0.7, total=100 * gib, free=50 * gib, held=10 * gib) == 20 * gib
    assert device_cache_bytes(0.5, total=100 * gib, free=30 * gib, held=70 * gib) == 0
