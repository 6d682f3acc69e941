import math
import statistics

import numpy as np
import pytest

from tandem.algo import advantage
from tandem.config import AlgoConfig


def chosen(sample, column_T):
    return column_T[sample.sampled_T].tolist()


def advantages(group, cfg):
    """The advantages of each sample at its chosen tokens."""
    (done,) = advantage([group], cfg)
    for sample, column_T in zip(done.samples, done.advantages, strict=True):
        assert (column_T[~sample.sampled_T] == 0).all()
    return [chosen(s, a) for s, a in zip(done.samples, done.advantages, strict=True)]


def kl_of(group, place, kind="k1"):
    """KL of each chosen token in plain Python."""
    sample = group.samples[place]
    pairs = zip(
        chosen(sample, group.old_logprobs[place]),
        chosen(sample, group.reference_logprobs[place]),
        strict=True,
    )
    r = [a - b for a, b in pairs]
    return r if kind == "k1" else [x * x / 2 for x in r]


@pytest.mark.parametrize("name", ["gspo", "cispo"])
def test_sequence_estimators_take_the_z_score_of_grpo(make_group, name):
    group = make_group(1.0, 0.0, 0.25, responses=[2, 5, 1])
    wanted = advantages(group, AlgoConfig())
    assert advantages(group, AlgoConfig(advantage_estimator=name)) == wanted


def test_rloo_compares_each_sample_with_the_mean_of_the_others(make_group):
    rewards = [1.0, 0.0, 0.5, 4.0]
    got = advantages(make_group(*rewards), AlgoConfig(advantage_estimator="rloo"))
    for place, mine in enumerate(rewards):
        others = [r for other, r in enumerate(rewards) if other != place]
        assert got[place] == pytest.approx([mine - statistics.fmean(others)] * 3)


def test_rloo_takes_the_kl_of_the_whole_answer_off_its_reward(make_group, with_columns):
    cfg = AlgoConfig(advantage_estimator="rloo", kl_coef=0.1)
    group = with_columns(
        make_group(1.0, 0.0, 2.0, responses=[3, 6, 4], masked=[2]),
        "old_logprobs", "reference_logprobs",
    )  # fmt: skip
    totals = [r - 0.1 * sum(kl_of(group, place)) for place, r in enumerate([1.0, 0.0, 2.0])]
    for place, got in enumerate(advantages(group, cfg)):
        others = [total for other, total in enumerate(totals) if other != place]
        wanted = totals[place] - statistics.fmean(others)
        assert got == pytest.approx([wanted] * len(got), rel=1e-5)


def whitened(rows):
    """Rows of numbers with mean 0 and variance 1 over all of them, in plain Python."""
    flat = [x for row in rows for x in row]
    mean, var = statistics.fmean(flat), statistics.variance(flat)
    return [[(x - mean) / math.sqrt(var + 1e-8) for x in row] for row in rows]


@pytest.mark.parametrize("kind", ["k1", "k2"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus_is_the_whitened_return(make_group, with_columns, kind, gamma):
    cfg = AlgoConfig(
        advantage_estimator="reinforce_plus_plus", normalize_advantages=True, gamma=gamma,
        kl_coef=0.05, kl_loss_type=kind,
    )  # fmt: skip
    rewards = [1.0, -0.5, 0.0]
    group = make_group(*rewards, responses=[4, 7, 3], masked=[1])
    group = with_columns(group, "old_logprobs", "reference_logprobs")
    returns = []
    for place, reward in enumerate(rewards):
        row = [-0.05 * kl for kl in kl_of(group, place, kind)]
        row[-1] += reward
        returns.append(
            [sum(gamma ** (s - t) * row[s] for s in range(t, len(row))) for t in range(len(row))]
        )
    for got, wanted in zip(advantages(group, cfg), whitened(returns), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_reinforce_plus_plus_baseline_is_the_whitened_centred_reward_less_kl(
    make_group, with_columns
):
    cfg = AlgoConfig(
        advantage_estimator="reinforce_plus_plus_baseline", normalize_advantages=True, kl_coef=0.2
    )
    rewards = [1.0, 0.0, 3.0]
    group = make_group(*rewards, responses=[2, 6, 4], masked=[0])
    group = with_columns(group, "old_logprobs", "reference_logprobs")
    mean = statistics.fmean(rewards)
    rows = [[r - mean - 0.2 * kl for kl in kl_of(group, i)] for i, r in enumerate(rewards)]
    for got, wanted in zip(advantages(group, cfg), whitened(rows), strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def gae_by_definition(rewards, values, gamma, lambd):
    """A_t = sum over k of (gamma lambd)^k delta_{t+k}."""
    count = len(rewards)
    deltas = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < count else 0.0) - values[t]
        for t in range(count)
    ]
    return [
        sum((gamma * lambd) ** (s - t) * deltas[s] for s in range(t, count)) for t in range(count)
    ]


@pytest.mark.parametrize(("gamma", "lambd"), [(1.0, 1.0), (0.99, 0.95), (1.0, 0.0)])
def test_ppo_is_the_generalised_advantage_estimate(make_group, with_columns, gamma, lambd):
    cfg = AlgoConfig(advantage_estimator="ppo", gamma=gamma, lambd=lambd, kl_coef=0.1)
    rewards = [1.0, 0.0]
    group = make_group(*rewards, responses=[5, 9], masked=[3])
    group = with_columns(group, "old_logprobs", "reference_logprobs", "values")
    (done,) = advantage([group], cfg)
    for place, reward in enumerate(rewards):
        sample = group.samples[place]
        values = chosen(sample, group.values[place])
        row = [-0.1 * kl for kl in kl_of(group, place)]
        row[-1] += reward
        wanted = gae_by_definition(row, values, gamma, lambd)
        assert chosen(sample, done.advantages[place]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        returns = [a + v for a, v in zip(wanted, values, strict=True)]
        assert chosen(sample, done.returns[place]) == pytest.approx(returns, rel=1e-4, abs=1e-6)


def test_whitening_leaves_the_returns_of_the_critic_alone(make_group, with_columns):
    group = with_columns(make_group(1.0, 0.0), "values")
    plain = advantage([group], AlgoConfig(advantage_estimator="ppo"))[0]
    cfg = AlgoConfig(advantage_estimator="ppo", normalize_advantages=True)
    white = advantage([group], cfg)[0]
    for one, other in zip(plain.returns, white.returns, strict=True):
        assert np.array_equal(one, other)


def test_kl_by_the_engines_logprobs_when_these_count_as_the_policys(make_group, with_columns):
    cfg = AlgoConfig(
        advantage_estimator="reinforce_plus_plus_baseline", kl_coef=1.0, use_rollout_logprobs=True
    )
    group = with_columns(make_group(0.0, 0.0), "reference_logprobs")
    (done,) = advantage([group], cfg)
    for sample, got_T, reference_T in zip(
        done.samples, done.advantages, group.reference_logprobs, strict=True
    ):
        assert got_T[sample.sampled_T] == pytest.approx(reference_T[sample.sampled_T])


def test_the_overlong_penalty_is_the_ramp_of_dapo(make_group):
    cfg = AlgoConfig(
        disable_rewards_normalization=True, overlong_buffer_len=4, overlong_max_len=10,
        overlong_penalty_factor=0.5,
    )  # fmt: skip
    lengths = [1, 6, 7, 8, 9, 10, 12]
    group = make_group(*[1.0] * len(lengths), responses=lengths)
    wanted = [1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert [row[0] for row in advantages(group, cfg)] == wanted


def test_without_a_buffer_no_length_is_punished(make_group):
    cfg = AlgoConfig(disable_rewards_normalization=True)
    assert advantages(make_group(1.0, responses=[50]), cfg)[0][0] == 1.0
