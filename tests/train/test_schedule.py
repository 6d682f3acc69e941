import math

import pytest

from tandem.config import OptimConfig
from tandem.errors import ConfigError
from tandem.train import schedule_of


def rates(num_steps, *, step_size=8, num_rollouts=80, **flags):
    schedule = schedule_of(
        OptimConfig(lr=1e-3, **flags), step_size=step_size, num_rollouts=num_rollouts
    )
    return [schedule.lr(step * step_size) for step in range(num_steps)]


def test_constant_stays_at_the_peak_for_ever():
    assert rates(30, lr_decay_style="constant") == [1e-3] * 30


def test_linear_goes_down_to_the_floor_and_stays():
    got = rates(13, lr_decay_style="linear", min_lr=1e-4)
    assert got == pytest.approx([1e-3 - 9e-4 * min(step / 10, 1) for step in range(13)])


def test_cosine_is_half_a_wave():
    got = rates(12, lr_decay_style="cosine", min_lr=1e-4)
    wanted = [1e-4 + 9e-4 * (1 + math.cos(math.pi * min(s / 10, 1))) / 2 for s in range(12)]
    assert got == pytest.approx(wanted)


def test_warm_up_begins_at_its_first_rate_and_reaches_the_peak():
    got = rates(7, lr_decay_style="constant", lr_warmup_iters=4)
    assert got == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    from_half = rates(3, lr_decay_style="constant", lr_warmup_iters=2, lr_warmup_init=5e-4)
    assert from_half == pytest.approx([5e-4, 7.5e-4, 1e-3])


def test_warm_up_as_a_share_of_the_decay_equals_the_same_steps():
    flags = {"lr_decay_style": "cosine", "lr_decay_iters": 20}
    by_share = rates(25, lr_warmup_fraction=0.25, **flags)
    assert by_share == rates(25, lr_warmup_iters=5, **flags)
    assert max(by_share) == by_share[5] == pytest.approx(1e-3)
    assert by_share[20] == 0.0


def test_the_decay_is_the_whole_run_when_unset():
    assert rates(11, lr_decay_style="linear", num_rollouts=80)[10] == 0.0
    assert rates(11, lr_decay_style="linear", num_rollouts=160)[10] == pytest.approx(5e-4)


def test_the_clock_counts_rollouts_not_steps():
    small = rates(20, step_size=4, num_rollouts=80, lr_decay_style="linear")
    large = rates(10, step_size=8, num_rollouts=80, lr_decay_style="linear")
    assert small[::2] == pytest.approx(large)


def test_a_warm_up_that_outlasts_the_decay_is_refused():
    with pytest.raises(ConfigError, match="does not end before the decay at 80"):
        rates(1, lr_decay_style="linear", lr_warmup_iters=10)


def test_two_ways_to_set_the_warm_up_are_refused():
    with pytest.raises(ConfigError, match="both set the warm-up"):
        rates(1, lr_warmup_iters=2, lr_warmup_fraction=0.1)


def test_a_run_that_only_evaluates_has_a_schedule_too():
    assert rates(1, num_rollouts=0, lr_decay_style="linear", min_lr=1e-5) == [1e-5]
