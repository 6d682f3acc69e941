import itertools
import random

import numpy as np
import pytest

from tandem.observe.metrics import (
    answer_metrics,
    correct_metrics,
    evaluation_metrics,
    pass_at_k,
    pass_metrics,
    repeats,
    reward_warning,
    rollout_mean,
    rollout_metrics,
    speed_metrics,
    training_metrics,
    turn_metrics,
)
from tandem.types import Ending


def test_response_length_counts_only_tokens_that_the_policy_chose(sample):
    samples = [
        sample(0, 1.0, sampled=(True, False, False, True)),
        sample(1, 1.0, sampled=(True,) * 5),
        sample(2, 1.0, sampled=(True,) * 11),
    ]
    metrics = answer_metrics(samples)
    assert metrics["response_len/mean"] == 6
    assert metrics["response_len/median"] == 5
    assert metrics["response_len/max"] == 11
    assert metrics["response_len/min"] == 2


def test_truncated_share_counts_samples_that_met_the_limit(sample):
    endings = (Ending.LENGTH, Ending.STOP, Ending.ABORT, Ending.STOP)
    samples = [sample(index, 0.0, ending=ending) for index, ending in enumerate(endings)]
    assert answer_metrics(samples)["truncated_ratio"] == 0.25


def test_only_a_long_and_regular_tail_counts_as_repetition():
    noise = "".join(random.Random(0).choices("abcdefghijklmnop", k=20_000))
    assert repeats("again and " * 1_001)
    assert not repeats("again and " * 1_000)  # not longer than the tail that is looked at
    assert not repeats(noise)
    assert repeats(noise + "again and " * 1_000)
    assert not repeats("again and " * 1_001 + noise)


def test_repetition_survives_characters_that_have_no_utf8():
    assert repeats("\ud800" * 10_001)


def test_missing_verdicts_are_counted_and_in_no_mean(rewarded):
    metrics = rollout_metrics(rewarded([1.0, None], [0.0, 1.0]))
    assert metrics["rollout/missing_verdicts"] == 1
    assert metrics["rollout/raw_reward"] == pytest.approx(2 / 3)


def test_a_batch_without_verdicts_has_no_mean_reward(rewarded):
    metrics = rollout_metrics(rewarded([None, None]))
    assert "rollout/raw_reward" not in metrics
    assert metrics["rollout/missing_verdicts"] == 2


def test_groups_of_equal_rewards_are_counted_by_reward(rewarded):
    groups = rewarded([1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.25, 0.25], [1.0, None])
    metrics = rollout_metrics(groups)
    counts = {key: value for key, value in metrics.items() if "zero_std" in key}
    assert counts == {
        "rollout/zero_std/count_1.0": 1,
        "rollout/zero_std/count_0.0": 2,
        "rollout/zero_std/count_0.2": 1,
    }


def test_reward_categories_are_shares_of_all_samples(sample, group):
    samples = [
        sample(0, 1.0, verdict={"why": "parsed"}),
        sample(1, 0.0, verdict={"why": "no answer"}),
        sample(2, 0.0, verdict={"why": "no answer"}),
        sample(3, 0.0, verdict=0.0),
    ]
    metrics = rollout_metrics([group(0, samples)], category_key="why")
    assert metrics["rollout/error_cat/no answer"] == 0.5
    assert metrics["rollout/error_cat/parsed"] == 0.25


def test_rollout_mean_is_the_mean_over_attempts_of_token_means(sample, group):
    samples = [
        sample(0, 1.0, sampled=(True, False, True)),  # 1 and 3: mean 2
        sample(1, 1.0, sampled=(True, True, True)),  # 10, 10, 40: mean 20
    ]
    column = [np.array([9, 9, 1, 9, 3]), np.array([9, 9, 10, 10, 40])]
    assert rollout_mean([group(0, samples)], [column]) == 11


def test_samples_of_one_attempt_count_once_weighted_by_tokens(sample, group):
    samples = [
        sample(0, 1.0, sampled=(True,), rollout=0),
        sample(1, 1.0, sampled=(True, True, True), rollout=0),
        sample(2, 1.0, sampled=(True,), rollout=2),
    ]
    column = [np.array([0, 0, 8]), np.array([0, 0, 0, 0, 4]), np.array([0, 0, 5])]
    # attempt 0: 12 over 4 tokens is 3; attempt 2: 5
    assert rollout_mean([group(0, samples)], [column]) == 4


def test_attempt_without_trained_tokens_counts_in_the_mean_as_zero(sample, group):
    samples = [sample(0, 1.0, sampled=(False,)), sample(1, 1.0, sampled=(True,))]
    column = [np.array([0, 0, 7]), np.array([0, 0, 6])]
    assert rollout_mean([group(0, samples)], [column]) == 3


def test_training_metrics_use_the_dialects_names_and_leave_absent_columns_out(sample, group):
    one = sample(0, 1.0, logprobs=(-1.0, -2.0, -3.0), ending=Ending.LENGTH)
    columns = {
        "old_logprobs": (np.array([0, 0, -1.0, -1.0, -4.0]),),
        "advantages": (np.array([0, 0, 0.5, 0.5, 0.5]),),
    }
    assert training_metrics([group(0, [one], **columns, scores=(0.25,))]) == {
        "rollout/response_lengths": 3,
        "rollout/total_lengths": 5,
        "rollout/truncated": 1,
        "rollout/rewards": 0.25,
        "rollout/rollout_log_probs": -2,
        "rollout/log_probs": -2,
        "rollout/advantages": 0.5,
    }


@pytest.mark.parametrize(("num_samples", "num_correct"), [(1, 0), (1, 1), (4, 1), (6, 2), (5, 5)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_sample(num_samples, num_correct):
    marks = [True] * num_correct + [False] * (num_samples - num_correct)
    for k in range(1, num_samples + 1):
        draws = list(itertools.combinations(marks, k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(
            sum(any(draw) for draw in draws) / len(draws)
        )


def test_pass_metrics_go_over_powers_of_two_and_the_verdicts_there_are(rewarded):
    groups = rewarded([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, None, None], [1.0, 1.0, 1.0, None])
    metrics = pass_metrics(groups, "passrate/")
    assert set(metrics) == {"passrate/pass@1", "passrate/pass@2", "passrate/pass@4"}
    assert metrics["passrate/pass@1"] == pytest.approx((0.25 + 0.0 + 1.0) / 3)
    assert metrics["passrate/pass@2"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert metrics["passrate/pass@4"] == 1.0  # only the first group has four verdicts


def test_only_reward_one_passes(rewarded):
    assert pass_metrics(rewarded([0.5, 0.9]), "-")["-pass@1"] == 0


def test_evaluation_metrics_of_a_set(sample, group):
    samples = [
        sample(0, 1.0, sampled=(True,) * 4),
        sample(1, 0.0, sampled=(True,) * 6, ending=Ending.LENGTH),
        sample(2, 0.0, sampled=(True,) * 8, ending=Ending.LENGTH),
        sample(3, None, sampled=(True,) * 2),
    ]
    metrics = evaluation_metrics("aime", [group(0, samples[:2]), group(1, samples[2:])])
    assert metrics["eval/aime"] == pytest.approx(1 / 3)
    assert metrics["eval/aime-truncated_ratio"] == 0.5
    assert metrics["eval/aime/response_len/mean"] == 5
    assert metrics["eval/aime-pass@1"] == 0.25
    assert metrics["eval/aime-pass@2"] == 1.0
    assert metrics["eval/aime-missing_verdicts"] == 1


def test_turns_are_unbroken_stretches_of_chosen_tokens(sample, group):
    two_turns = sample(0, 1.0, sampled=(True, True, False, False, True))
    one_turn = sample(1, 1.0, sampled=(True,))
    metrics = turn_metrics([group(0, [two_turns, one_turn])])
    assert metrics["multi_turn/round_number/max"] == 2
    assert metrics["multi_turn/round_number/mean"] == 1.5
    assert metrics["multi_turn/raw_response_length/max"] == 5
    assert metrics["multi_turn/wo_obs_response_length/max"] == 3


def test_correct_metrics_speak_of_correct_samples_alone(sample, group):
    samples = [sample(0, 1.0, sampled=(True,) * 4), sample(1, 0.0, sampled=(True,) * 9)]
    assert correct_metrics([group(0, samples)])["rollout/correct_response_lengths"] == 4
    assert correct_metrics([group(0, samples[1:])]) == {}


def test_speed_is_per_device_and_effective_speed_counts_chosen_tokens(sample, group):
    samples = [sample(0, 1.0, sampled=(True, False, False, True)), sample(1, 1.0, sampled=(True,))]
    metrics = speed_metrics([group(0, samples)], 0.5, 2)
    assert metrics["perf/tokens_per_gpu_per_sec"] == 5
    assert metrics["perf/effective_tokens_per_gpu_per_sec"] == 3
    assert metrics["perf/longest_sample_tokens_per_sec"] == 8


def test_batch_of_equal_rewards_is_said_aloud(rewarded):
    warning = reward_warning(rewarded([0.0, 0.0], [0.0, None]))
    assert warning is not None
    assert warning.startswith("All 3 rewards of this batch are 0:")


def test_groups_of_equal_rewards_are_said_aloud_though_groups_differ(rewarded):
    warning = reward_warning(rewarded([0.0, 0.0], [1.0, 1.0]))
    assert warning is not None
    assert warning.startswith("In each of the 2 groups")


def test_batch_without_any_verdict_is_said_aloud(rewarded):
    warning = reward_warning(rewarded([None, None]))
    assert warning is not None
    assert warning.startswith("No verdict came for any of the 2 samples")


def test_batch_with_a_signal_needs_no_warning(rewarded):
    assert reward_warning(rewarded([0.0, 0.0], [0.0, 1.0])) is None


def test_single_samples_that_differ_need_no_warning(rewarded):
    assert reward_warning(rewarded([0.0], [1.0])) is None
