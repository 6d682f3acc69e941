from dataclasses import replace

import numpy as np
import pytest

from tandem.filters.groups import SHIPPED, check_reward_nonzero_std, find_shipped
from tandem.types import Ending, Group, Prompt, Sample

HUB = "slime.rollout.filter_hub.dynamic_sampling_filters."
NOTHING = np.zeros(0, np.int32)


def group_of(*rewards, rollouts=None):
    prompt = Prompt(index=0, tokens_T=NOTHING, text="", content="")
    blank = Sample(
        index=0,
        position=0,
        tokens_T=NOTHING,
        sampled_T=np.zeros(0, bool),
        logprobs_T=np.zeros(0, np.float32),
        version_T=NOTHING,
        ending=Ending.STOP,
        text="",
    )
    rollouts = rollouts or range(len(rewards))
    samples = (
        replace(blank, index=nth, rollout=rollout, reward=reward)
        for nth, (rollout, reward) in enumerate(zip(rollouts, rewards, strict=True))
    )
    return Group(prompt=prompt, samples=tuple(samples))


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ((0.0, 1.0), None),
        ((1.0, 1.0, 1.0), "zero_std_1.0"),
        ((0.0, 0.0), "zero_std_0.0"),
        ((-0.0, 0.0), "zero_std_0.0"),
        ((0.26, 0.26), "zero_std_0.3"),
        ((-1.0, -1.0), "zero_std_-1.0"),
        ((1.0, 1.0 + 1e-7), "zero_std_1.0"),  # under 1e-6
        ((1.0, 1.0 + 1e-5), None),
        ((1.0,), "zero_std_1.0"),
        ((None, 1.0, 1.0), "zero_std_1.0"),  # a missing verdict is no difference
        ((None, 0.0, 1.0), None),
        ((None, 0.5), "zero_std_0.5"),
        ((None, None), "no_verdict"),
        ((), "no_verdict"),
    ],
)
def test_a_group_is_kept_if_its_rewards_differ(rewards, reason):
    assert check_reward_nonzero_std(group_of(*rewards)) == reason


def test_samples_that_one_attempt_fanned_out_into_count_each():
    assert check_reward_nonzero_std(group_of(1.0, 1.0, 1.0, 0.0, rollouts=(1, 1, 1, 2))) is None
    same = group_of(1.0, 1.0, 1.0, rollouts=(1, 1, 2))
    assert check_reward_nonzero_std(same) == "zero_std_1.0"


def test_the_dialects_paths_name_the_shipped_filters():
    plain = SHIPPED[HUB + "check_reward_nonzero_std"]
    fallback = SHIPPED[HUB + "check_reward_nonzero_std_with_fallback"]
    assert (plain.keep_when_insufficient, fallback.keep_when_insufficient) == (False, True)
    for shipped in (plain, fallback):
        assert shipped(group_of(1.0, 1.0)) == "zero_std_1.0"
        assert shipped(group_of(0.0, 1.0)) is None


def test_a_shipped_filter_is_found_by_path_or_name_and_others_are_not():
    wanted = SHIPPED[HUB + "check_reward_nonzero_std"]
    assert find_shipped(HUB + "check_reward_nonzero_std") is wanted
    assert find_shipped("check_reward_nonzero_std") is wanted
    assert find_shipped("tandem.filters.check_reward_nonzero_std") is wanted
    assert find_shipped("mine.check_reward_nonzero_std") is None
