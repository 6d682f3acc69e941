"""Partial rollouts: what is cut off waits and goes on from where it was."""

import random
from dataclasses import replace

import numpy as np
import pytest

from tandem.errors import CheckpointError
from tandem.rollout import decode, encode
from tandem.rollout.rules import KEEP, Ruling
from tandem.types import Ending


def length_of(prompt, sample):
    return 3 + (prompt * 5 + sample * 3) % 17


def plain_reward(prompt, sample):
    return float(prompt * 10 + sample)


def drop_fifths(group):
    return Ruling(reason="fifth") if group.prompt.index % 5 == 0 else KEEP


def told(groups):
    return [
        (
            group.prompt.index,
            s.index,
            s.ending,
            s.text,
            s.reward,
            dict(s.metadata),
            *(column.tolist() for column in (s.tokens_T, s.sampled_T, s.logprobs_T, s.version_T)),
        )
        for group in groups
        for s in group.samples
    ]


def partial(stage_of, engine, reward, **choice):
    return stage_of(engine, reward, fetch_size=8, saves=True, **choice)


def test_cut_off_samples_end_with_the_tokens_of_an_uncut_run(stage_of, engine_of, reward_of):
    engine = engine_of(length_of)
    stage = partial(stage_of, engine, reward_of(plain_reward))
    seen = {}
    num_mixed = 0
    for step in range(8):
        engine.version = step
        for group in stage.collect(step).groups:
            assert group.prompt.index not in seen
            seen[group.prompt.index] = group
            for sample in group.samples:
                assert sample.ending is Ending.STOP
                assert sample.num_sampled == length_of(group.prompt.index, sample.position)
                assert sample.reward == plain_reward(group.prompt.index, sample.position)
                versions = set(sample.version_T[sample.sampled_T].tolist())
                num_mixed += len(versions) > 1
                if len(versions) > 1:
                    assert sample.metadata["start_rollout_id"] == min(versions)
    assert num_mixed > 5
    waiting = {group.prompt.index for group in stage.state()["leftovers"]}
    assert not waiting & set(seen)
    assert waiting | set(seen) == set(range(stage.state()["source"]["taken"]))


def test_what_waits_goes_first_in_the_order_it_came(stage_of, engine_of, reward_of):
    stage = partial(stage_of, engine_of(length_of), reward_of(plain_reward))
    stage.collect(0)
    waiting = [group.prompt.index for group in stage.state()["leftovers"]]
    assert waiting == sorted(waiting) and len(waiting) == 4
    rollout = stage.collect(1)
    assert rollout.metrics["rollout/num_continued_groups"] == 4
    assert stage.state()["source"]["taken"] == 12


def test_a_buffer_filter_chooses_what_goes_on(stage_of, engine_of, reward_of):
    def last_in(buffer, count):
        chosen = [buffer.pop() for _ in range(min(1, count))]
        return chosen

    stage = partial(stage_of, engine_of(length_of), reward_of(plain_reward), choose=last_in)
    stage.collect(0)
    waiting = [group.prompt.index for group in stage.state()["leftovers"]]
    stage.collect(1)
    still = [group.prompt.index for group in stage.state()["leftovers"]]
    assert still[: len(waiting) - 1] == waiting[:-1]


def test_tokens_of_earlier_weights_can_be_left_untrained(stage_of, engine_of, reward_of):
    engine = engine_of(length_of)
    stage = partial(stage_of, engine, reward_of(plain_reward), masks_old=True)
    num_masked = 0
    for step in range(6):
        engine.version = step
        for group in stage.collect(step).groups:
            for sample in group.samples:
                trained_T = sample.sampled_T
                assert (sample.version_T[trained_T] == step).all()
                assert (sample.logprobs_T[~trained_T] == 0).all()
                num_masked += int((~trained_T).sum()) > len(group.prompt.tokens_T)
    assert num_masked > 5


def test_a_stage_restored_from_bytes_goes_on_to_the_bit(stage_of, engine_of, reward_of, events):
    def run(break_at):
        engine = engine_of(length_of)
        reward = reward_of(plain_reward, 0.002, random.Random(break_at))
        stage = partial(stage_of, engine, reward, keeps=drop_fifths)
        given = []
        for step in range(6):
            if step == break_at:
                state = stage.state()
                engine, fresh = engine_of(length_of), reward_of(plain_reward)
                stage = partial(stage_of, engine, fresh, keeps=drop_fifths)
                stage.restore({**state, "leftovers": decode(encode(state["leftovers"]))})
            engine.version, engine.num_steps = step, 0
            given.append(told(stage.collect(step).groups))
        return given, told(stage.state()["leftovers"])

    assert run(-1) == run(2) == run(4)


def test_groups_survive_as_bytes(stage_of, engine_of, reward_of):
    stage = partial(stage_of, engine_of(length_of), reward_of(plain_reward))
    stage.collect(0)
    groups = stage.state()["leftovers"]
    back = decode(encode(groups))
    assert told(back) == told(groups)
    for group, other in zip(groups, back, strict=True):
        assert (group.prompt.tokens_T == other.prompt.tokens_T).all()
        for sample, again in zip(group.samples, other.samples, strict=True):
            assert again.tokens_T.dtype == np.int32 and again.sampled_T.dtype == bool
            assert again.logprobs_T.dtype == np.float32 and sample.rollout == again.rollout
    assert decode(encode(())) == ()


def test_the_experts_of_samples_survive_as_bytes(stage_of, engine_of, reward_of):
    stage = partial(stage_of, engine_of(length_of), reward_of(plain_reward))
    stage.collect(0)
    group = stage.state()["leftovers"][0]
    first, *others = group.samples
    experts_TLk = np.arange(first.num_tokens * 6, dtype=np.int16).reshape(-1, 3, 2) - 1
    first = replace(first, experts_TLk=experts_TLk)
    (back,) = decode(encode([replace(group, samples=(first, *others))]))
    assert (back.samples[0].experts_TLk == experts_TLk).all()
    assert back.samples[0].experts_TLk.dtype == np.int16
    assert all(sample.experts_TLk is None for sample in back.samples[1:])


def test_metadata_that_cannot_be_saved_is_named(stage_of, engine_of, reward_of):
    stage = partial(stage_of, engine_of(length_of), reward_of(plain_reward))
    stage.collect(0)
    group = stage.state()["leftovers"][0]
    object.__setattr__(group.samples[0], "metadata", {"tool": object()})
    with pytest.raises(CheckpointError, match="Keep numbers, text, lists"):
        encode([group])


def test_another_number_of_samples_is_refused(stage_of, engine_of, reward_of):
    stage = partial(stage_of, engine_of(length_of), reward_of(plain_reward))
    stage.collect(0)
    other = partial(stage_of, engine_of(length_of), reward_of(plain_reward), num_samples=2)
    with pytest.raises(CheckpointError, match="n-samples-per-prompt"):
        other.restore(stage.state())
