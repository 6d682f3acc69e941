"""The reward stage: which reward judges a sample, and what becomes of its verdict."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from reward_samples import group_of, sample_of

from tandem.config import RewardConfig
from tandem.errors import ConfigError, HookError, RewardError
from tandem.rewards.reward import RewardStage
from tandem.types import Ending

HOOKS = "reward_hooks."


def score(group, *, args=None, is_evaluation=False, **settings):
    stage = RewardStage(RewardConfig(reward_workers=1, **settings), args=args)
    try:
        return asyncio.run(stage.score(group, is_evaluation=is_evaluation))
    finally:
        stage.close()


def test_every_sample_is_judged_by_the_named_reward():
    group = group_of(sample_of(0, r"\boxed{5}"), sample_of(1, r"\boxed{6}"))
    judged = score(group, rm_type="math")
    assert judged.rewards_G == (1.0, 0.0)
    assert [sample.verdict for sample in judged.samples] == [1, 0]
    assert group.rewards_G == (None, None)  # nobody edits what another stage made


def test_metadata_names_another_reward_and_a_sample_its_own_function():
    text = "the answer is B"
    assert score(group_of(sample_of(0, text), label="B"), rm_type="math").rewards_G == (0.0,)
    by_prompt = group_of(sample_of(0, text), label="B", rm_type="gpqa")
    assert score(by_prompt, rm_type="math").rewards_G == (1.0,)
    custom = HOOKS + "by_length"
    assert score(by_prompt, rm_type="math", custom_rm_path=custom).rewards_G == (15.0,)
    own = group_of(sample_of(0, text), rm_type="gpqa", custom_rm_path=HOOKS + "with_kwargs")
    assert score(own, rm_type="math", custom_rm_path=custom).rewards_G == (7.0,)


def test_no_reward_at_all_says_what_to_set():
    with pytest.raises(RewardError, match="--rm-type or --custom-rm-path"):
        score(group_of(sample_of(0, "5")))


def test_rewards_that_cannot_be_are_refused_at_the_start():
    with pytest.raises(ConfigError, match="did you mean math"):
        RewardStage(RewardConfig(rm_type="maths"))
    RewardStage(RewardConfig(rm_type="maths", custom_rm_path=HOOKS + "by_length")).close()
    with pytest.raises(ConfigError, match="set --rm-url"):
        RewardStage(RewardConfig(rm_type="remote_rm"))
    stage = RewardStage(RewardConfig(rm_type="math"))
    with pytest.raises(HookError, match="no function 'nothing'"):
        stage.check(hooks=[HOOKS + "nothing"])
    stage.close()


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("fn", "no dotted path"),
        ("no_such_module.fn", "importing no_such_module failed"),
        (HOOKS + "nothing", "no function 'nothing'; its functions are: .*by_length"),
        (HOOKS + "number", "no function"),
        (HOOKS + "three_arguments", r"wanted def name\(args, sample\)"),
    ],
)
def test_a_custom_function_is_checked_at_the_start(path, what):
    with pytest.raises(HookError, match=what):
        RewardStage(RewardConfig(custom_rm_path=path))


def test_blocking_functions_work_and_get_the_arguments():
    group = group_of(sample_of(0, "a", length=3), sample_of(1, "b", length=5))
    judged = score(group, custom_rm_path=HOOKS + "blocking", args=SimpleNamespace(scale=10))
    assert judged.rewards_G == (30.0, 50.0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "RuntimeError: the judge is ill"),
        ("leaves", "SystemExit: 3"),
        ("sleeps", "no verdict within 0.05 s"),
        ("blocks", "no verdict within 0.05 s"),
    ],
)
def test_a_function_that_fails_or_is_late_leaves_the_verdict_missing(name, why):
    cfg = RewardConfig(custom_rm_path=HOOKS + name, reward_timeout_s=0.05)
    stage = RewardStage(cfg)
    judged = asyncio.run(stage.score(group_of(sample_of(0, "a"))))
    assert judged.rewards_G == (None,)
    assert why in judged.samples[0].verdict["missing"]
    assert (stage.num_verdicts, stage.num_missing) == (0, 1)
    stage.close()


@pytest.mark.parametrize(
    ("label", "reward"),
    [("true", 1.0), ("numpy", 0.5), ("array", 0.25), ("dict", 2.0)],
)
def test_numbers_of_every_kind_become_floats(label, reward):
    group = group_of(sample_of(0, "a"), label=label)
    path = HOOKS + "returns_what_the_label_says"
    judged = score(group, custom_rm_path=path, reward_key="score")
    assert judged.rewards_G == (reward,)
    assert type(judged.samples[0].reward) is float


@pytest.mark.parametrize(
    ("label", "why"),
    [("none", "no number"), ("nan", "nan"), ("inf", "inf"), ("text", "'good'")],
)
def test_what_is_no_finite_number_is_missing(label, why):
    group = group_of(sample_of(0, "a"), label=label)
    judged = score(group, custom_rm_path=HOOKS + "returns_what_the_label_says")
    assert judged.rewards_G == (None,)
    assert why in judged.samples[0].verdict["missing"]


def test_a_dictionary_needs_a_key_that_it_has():
    group = group_of(sample_of(0, "Answer: 5"))
    judged = score(group, rm_type="dapo", reward_key="score")
    assert judged.rewards_G == (1.0,)
    assert judged.samples[0].verdict == {"score": 1.0, "acc": True, "pred": "5"}
    with pytest.raises(RewardError, match=r"keys score, acc, pred; .*--reward-key"):
        score(group, rm_type="dapo")
    with pytest.raises(RewardError, match=r"--reward-key points .*keys are: score, acc, pred"):
        score(group, rm_type="dapo", reward_key="points")


def test_evaluation_may_take_another_key():
    group = group_of(sample_of(0, "Answer: 4"))
    keys = {"reward_key": "score", "eval_reward_key": "acc"}
    assert score(group, rm_type="dapo", **keys).rewards_G == (-1.0,)
    assert score(group, rm_type="dapo", is_evaluation=True, **keys).rewards_G == (0.0,)
    only = score(group, rm_type="dapo", reward_key="score", is_evaluation=True)
    assert only.rewards_G == (-1.0,)


def test_a_function_may_judge_a_group_at_once():
    group = group_of(*(sample_of(nth, "a", length=length) for nth, length in enumerate((9, 2, 5))))
    judged = score(group, custom_rm_path=HOOKS + "ranks", group_rm=True)
    assert judged.rewards_G == (2.0, 0.0, 1.0)
    short = score(group, custom_rm_path=HOOKS + "ranks_too_few", group_rm=True)
    assert short.rewards_G == (None, None, None)
    assert "1 values for 3 samples" in short.samples[0].verdict["missing"]


def test_group_rm_without_a_function_judges_one_by_one():
    judged = score(group_of(sample_of(0, r"\boxed{5}")), rm_type="math", group_rm=True)
    assert judged.rewards_G == (1.0,)


def test_aborted_and_failed_samples_and_siblings_of_aborted_ones_get_no_verdict():
    group = group_of(
        sample_of(0, r"\boxed{5}"),
        sample_of(1, r"\boxed{5}", ending=Ending.ABORT, rollout=70),
        sample_of(2, r"\boxed{5}", rollout=70),
        sample_of(3, r"\boxed{5}", ending=Ending.ERROR),
        sample_of(4, r"\boxed{5}", ending=Ending.LENGTH),
    )
    judged = score(group, rm_type="math")
    assert judged.rewards_G == (1.0, None, None, None, 1.0)
    assert [sample.verdict for sample in judged.samples] == [1, None, None, None, 1]


def test_a_group_that_was_interrupted_is_not_judged_as_a_whole():
    group = group_of(sample_of(0, "a"), sample_of(1, "b", ending=Ending.ABORT))
    judged = score(group, custom_rm_path=HOOKS + "ranks", group_rm=True)
    assert judged.rewards_G == (None, None)


def test_what_has_a_verdict_keeps_it():
    known = replace(sample_of(0, r"\boxed{5}"), reward=0.3)
    assert score(group_of(known), rm_type="math").rewards_G == (0.3,)


def test_notes_that_a_function_takes_stay_with_its_sample_alone():
    group = group_of(sample_of(0, "a"), sample_of(1, "b"), tools=["theirs"])
    judged = score(group, custom_rm_path=HOOKS + "takes_notes")
    assert [sample.metadata["note"] for sample in judged.samples] == ["completed", "completed"]
    assert judged.samples[0].metadata["tools"] == ["theirs", "mine"]
    assert group.prompt.metadata == {"tools": ["theirs"]}


def test_a_reward_that_never_gives_a_verdict_stops_the_run():
    stage = RewardStage(RewardConfig(rm_type="dapo"))
    many = group_of(*(sample_of(nth, "Answer: 5") for nth in range(100)), label="no number")
    with pytest.raises(RewardError, match=r"not one of the first 64 .*must be a number"):
        asyncio.run(stage.score(many))
    stage.close()


def test_random_verdicts_repeat_with_the_seed_and_the_sample():
    group = group_of(*(sample_of(nth, "a") for nth in range(64)))
    first = score(group, rm_type="random").rewards_G
    assert set(first) == {0.0, 1.0}
    assert score(group, rm_type="random").rewards_G == first
