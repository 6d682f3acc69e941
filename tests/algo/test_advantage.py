import math
import statistics

import numpy as np
import pytest

from tandem.algo import advantage
from tandem.config import AlgoConfig
from tandem.errors import ConfigError, RewardError
from tandem.types import Ending, Group, Prompt, Sample


def sample(reward, *, position=0, prompt=2, response=3, masked=(), ending=Ending.STOP):
    sampled_T = np.array([False] * prompt + [True] * response)
    sampled_T[list(masked)] = False
    length = prompt + response
    return Sample(
        index=position,
        position=position,
        tokens_T=np.arange(length, dtype=np.int32),
        sampled_T=sampled_T,
        logprobs_T=np.zeros(length, np.float32),
        version_T=np.full(length, -1, np.int32),
        ending=ending,
        text="",
        reward=reward,
    )


def group(*rewards, **more):
    prompt = Prompt(index=0, tokens_T=np.arange(2, dtype=np.int32), text="", content="")
    samples = tuple(sample(r, position=i, **more) for i, r in enumerate(rewards))
    return Group(prompt=prompt, samples=samples)


def scores(groups, cfg=None):
    """The one advantage of each sample, read at its first trained token."""
    done = advantage(groups, cfg or AlgoConfig())
    return [
        [float(a[s.sampled_T][0]) for s, a in zip(g.samples, g.advantages, strict=True)]
        for g in done
    ]


def test_grpo_is_the_z_score_within_each_group():
    rewards = [[1.0, 0.0, 0.0, 1.0, 0.5], [3.0, -2.0, 7.25]]
    got = scores([group(*row) for row in rewards])
    for got_G, row in zip(got, rewards, strict=True):
        mean, std = statistics.fmean(row), statistics.stdev(row)
        assert got_G == pytest.approx([(r - mean) / (std + 1e-6) for r in row], rel=1e-6)


def test_without_std_only_the_mean_is_taken_off():
    cfg = AlgoConfig(disable_grpo_std_normalization=True)
    assert scores([group(1.0, 0.0, 0.0, 0.0)], cfg) == [[0.75, -0.25, -0.25, -0.25]]


def test_without_normalisation_the_advantage_is_the_reward():
    cfg = AlgoConfig(disable_rewards_normalization=True)
    assert scores([group(1.0, -3.5)], cfg) == [[1.0, -3.5]]


@pytest.mark.parametrize("reward", [0.1, 1.0, -0.3, 1e9])
@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_group_with_equal_rewards_has_exactly_zero_advantage(reward, count):
    assert scores([group(*[reward] * count)]) == [[0.0] * count]


def test_a_missing_verdict_is_outside_the_statistics_and_has_zero_advantage():
    with_missing = scores([group(1.0, None, 0.0, 0.5)])[0]
    without = scores([group(1.0, 0.0, 0.5)])[0]
    assert with_missing == [without[0], 0.0, without[1], without[2]]


def test_a_sample_that_failed_counts_as_missing_whatever_its_reward():
    failed = sample(100.0, ending=Ending.ERROR)
    base = group(1.0, 0.0, 0.5)
    mixed = Group(prompt=base.prompt, samples=(*base.samples, failed))
    assert scores([mixed])[0] == [*scores([base])[0], 0.0]


def test_a_group_with_no_verdict_at_all_is_zero():
    assert scores([group(None, None)]) == [[0.0, 0.0]]


def test_one_verdict_among_missing_ones_is_zero():
    assert scores([group(None, 0.7, None)]) == [[0.0, 0.0, 0.0]]


def test_advantages_are_zero_where_the_policy_did_not_choose():
    (done,) = advantage([group(1.0, 0.0, response=4, masked=[3])], AlgoConfig())
    for one, column_T in zip(done.samples, done.advantages, strict=True):
        assert column_T.dtype == np.float32
        assert (column_T[~one.sampled_T] == 0).all()
        assert (column_T[one.sampled_T] != 0).all()


def test_groups_of_different_sizes_do_not_touch_each_other():
    alone = scores([group(1.0, 0.0, 0.0)])[0]
    assert scores([group(5.0, 9.0), group(1.0, 0.0, 0.0)])[1] == alone


def test_whitened_advantages_have_mean_zero_and_unit_variance_over_trained_tokens():
    cfg = AlgoConfig(normalize_advantages=True)
    base = [group(1.0, 0.0, 4.0, response=3), group(2.0, -1.0, None, response=5, masked=[4])]
    done = advantage(base, cfg)
    plain = advantage(base, AlgoConfig())
    pairs = [
        (float(before), float(after))
        for g, p in zip(done, plain, strict=True)
        for s, a, b in zip(g.samples, g.advantages, p.advantages, strict=True)
        if s.reward is not None
        for before, after in zip(b[s.sampled_T], a[s.sampled_T], strict=True)
    ]
    before = [x for x, _ in pairs]
    mean, var = statistics.fmean(before), statistics.variance(before)
    for x, y in pairs:
        assert y == pytest.approx((x - mean) / math.sqrt(var + 1e-8), abs=1e-6)
    assert (done[1].advantages[2] == 0).all(), "a missing verdict stays 0"


def test_an_estimator_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"rloo_max is not there; use one of: grpo"):
        advantage([group(1.0)], AlgoConfig(advantage_estimator="rloo_max"))


def test_a_reward_that_is_no_number_stops_the_run():
    with pytest.raises(RewardError, match="sample 1 has reward nan"):
        advantage([group(1.0, math.nan)], AlgoConfig())


def test_supervised_groups_pass_through():
    base = [group(None, None)]
    assert advantage(base, AlgoConfig(loss_type="sft_loss")) == tuple(base)
    assert advantage(base, AlgoConfig(disable_compute_advantages_and_returns=True))[0] is base[0]
