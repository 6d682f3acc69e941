"""Dynamic sampling: what is kept, dropped and fetched again, and that judges change nothing."""

import random

import pytest

from tandem.rollout.rules import KEEP, Ruling


def length_of(prompt, sample):
    return 3 + (prompt * 5 + sample * 3) % 11


def drop_thirds(group):
    return Ruling(reason="third") if group.prompt.index % 3 == 0 else KEEP


def plain_reward(prompt, sample):
    return float(prompt * 10 + sample)


def told(rollout):
    """Everything that a round gave, to the bit."""
    return [
        (group.prompt.index, s.index, s.tokens_T.tolist(), s.logprobs_T.tolist(), s.reward)
        for group in (*rollout.groups, *rollout.dropped)
        for s in group.samples
    ]


def test_dropped_groups_are_replaced_and_counted(stage_of, engine_of, reward_of):
    stage = stage_of(engine_of(length_of), reward_of(plain_reward), keeps=drop_thirds)
    rollout = stage.collect(0)
    kept = [group.prompt.index for group in rollout.groups]
    assert len(kept) == 4 and kept == sorted(kept) and not any(n % 3 == 0 for n in kept)
    dropped = [group.prompt.index for group in rollout.dropped]
    assert dropped and all(n % 3 == 0 for n in dropped)
    assert rollout.metrics["rollout/dynamic_filter/drop_third"] == len(dropped)
    assert all(s.reward is not None for g in rollout.groups for s in g.samples)


def test_sampling_stops_as_soon_as_enough_is_kept(stage_of, engine_of, reward_of):
    def slow_tail(prompt, sample):
        return 500 if prompt in (1, 6) else 5 + prompt

    engine = engine_of(slow_tail)
    rollout = stage_of(engine, reward_of(plain_reward), fetch_size=8).collect(0)
    assert [group.prompt.index for group in rollout.groups] == [0, 2, 3, 4]
    assert engine.num_steps < 20 and not engine.live


def test_prompt_order_waits_for_the_slow_and_keeps_the_first(stage_of, engine_of, reward_of):
    def slow_head(prompt, sample):
        return 60 if prompt == 1 else 5 + prompt

    engine = engine_of(slow_head)
    stage = stage_of(
        engine, reward_of(plain_reward), fetch_size=8, order="prompts", keeps=drop_thirds
    )
    rollout = stage.collect(0)
    assert [group.prompt.index for group in rollout.groups] == [1, 2, 4, 5]
    assert engine.num_steps >= 60


@pytest.mark.parametrize("order", ["finished", "prompts"])
@pytest.mark.parametrize("fetch_size", [4, 7])
@pytest.mark.parametrize("saves", [False, True])
def test_rounds_do_not_depend_on_how_late_judges_are(
    order, fetch_size, saves, stage_of, engine_of, reward_of
):
    """Log-probs of the fake engine hold the step of every token, so equal means equal steps."""
    given = []
    for delay_s, seed in ((0.0, 0), (0.002, 1), (0.004, 2)):
        reward = reward_of(plain_reward, delay_s, random.Random(seed))
        engine = engine_of(length_of)
        stage = stage_of(
            engine,
            reward,
            order=order,
            keeps=drop_thirds,
            fetch_size=fetch_size,
            saves=saves,
        )
        rounds = []
        for step in range(4):
            engine.num_steps = 0  # where sampling ended in vain does not matter
            rounds.append(told(stage.collect(step)))
        given.append(rounds)
    assert given[0] == given[1] == given[2]


def test_no_more_samples_at_work_than_allowed(stage_of, engine_of, reward_of):
    engine = engine_of(length_of)
    stage = stage_of(engine, reward_of(plain_reward), keeps=drop_thirds, concurrency=5)
    assert len(stage.collect(0).groups) == 4
    assert engine.most_live == 5


def test_failure_of_a_judge_ends_the_round_and_leaves_nothing_live(stage_of, engine_of, reward_of):
    class Broken:
        async def score(self, group, *, is_evaluation=False):
            raise ValueError("judge is ill")

    engine = engine_of(lambda prompt, sample: 5 if prompt == 2 else 400)
    stage = stage_of(engine, Broken())
    with pytest.raises(ValueError, match="judge is ill"):
        stage.collect(0)
    assert not engine.live and engine.num_steps < 50
