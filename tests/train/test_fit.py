"""A run that cannot fit is refused with its numbers."""

from dataclasses import replace

import pytest

from tandem.config import OptimConfig
from tandem.errors import ResourceError
from tandem.models.decoder import Recompute
from tandem.models.shape import Shape
from tandem.train.fit import GIB, check_fit, training_bytes

QWEN3_4B = Shape(
    family="qwen3",
    num_layers=36,
    width=2560,
    ffn=9728,
    num_heads=32,
    num_key_heads=8,
    head_size=128,
    vocab=151936,
    eps=1e-6,
    rope_theta=1e6,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=40960,
)


def needs(shape=QWEN3_4B, recompute=None, row_tokens=10_240, **optim):
    return training_bytes(shape, OptimConfig(**optim), row_tokens=row_tokens, recompute=recompute)


def test_the_sum_is_near_the_peak_that_was_measured():
    found = sum(needs().values()) / GIB
    assert 104 < found < 112  # 109 GiB on an H200


def test_recompute_and_offload_take_away_what_they_promise():
    everything = sum(needs().values())
    selective = sum(needs(recompute=Recompute(granularity="selective")).values())
    full = sum(needs(recompute=Recompute()).values())
    assert everything > selective > full
    assert "moments" not in needs(optimizer_cpu_offload=True)
    assert sum(needs(exp_avg_dtype="bf16").values()) < everything


def test_what_does_not_fit_is_refused_with_numbers():
    check_fit(needs(), 140 * GIB)
    large = replace(QWEN3_4B, num_layers=64, width=5120, ffn=25600)
    with pytest.raises(ResourceError, match=r"about \d+\.\d GiB and this device has 140\.0"):
        check_fit(needs(large), 140 * GIB)
