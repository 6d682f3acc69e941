"""Rounds in which users' functions fail: what is lost is said, and nothing else is lost."""

import random
from types import SimpleNamespace

from hypothesis import HealthCheck, given, settings, strategies
from mishaps import FAILED, FATES, UNJUDGED

from tandem.config import RewardConfig
from tandem.rewards.reward import RewardStage
from tandem.rollout import EventLoop
from tandem.rollout.rules import KEEP, Ruling
from tandem.types import Ending


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=strategies.integers(0, 2**31),
    share=strategies.floats(0.05, 0.6),
    fetch_size=strategies.integers(3, 7),
    num_samples=strategies.integers(1, 3),
    order=strategies.sampled_from(["finished", "prompts"]),
    saves=strategies.booleans(),
    filters=strategies.booleans(),
    concurrency=strategies.sampled_from([2, 5, 100]),
)
def test_every_prompt_is_accounted_for_whatever_fails(
    stages, seed, share, fetch_size, num_samples, order, saves, filters, concurrency
):
    draw = random.Random(seed)
    lengths = [draw.randrange(1, 20) for _ in range(997)]
    fates = [draw.choice(FATES) if draw.random() < share else "fine" for _ in range(997)]
    # a success before all else: a hook that never works would end the run
    fates[0] = "fine"
    args = SimpleNamespace(fate=lambda index: fates[index % 997])
    cfg = RewardConfig(custom_rm_path="mishaps.judge", reward_timeout_s=0.003)
    reward, events = RewardStage(cfg, args=args, seed=0), EventLoop()
    engine = stages.StepEngine(lambda prompt, sample: lengths[(prompt * 31 + sample) % 997])
    stage = stages.build_stage(
        engine,
        reward,
        events,
        num_samples=num_samples,
        concurrency=concurrency,
        batch_size=3,
        fetch_size=fetch_size,
        order=order,
        saves=saves,
        custom="mishaps.answer",
        hooks=["mishaps.mark"],
        args=args,
        keeps=(lambda g: Ruling(reason="x") if g.prompt.index % 4 == 1 else KEEP)
        if filters
        else None,
    )
    everything = []
    for step in range(3):
        engine.version = step
        rollout = stage.collect(step)
        assert len(rollout.groups) == 3 and not engine.live
        for group in rollout.groups:
            assert [s.position for s in group.samples] == list(range(num_samples))
            for sample in group.samples:
                check(group, sample, fates[sample.index % 997])
        everything += [group.prompt.index for group in (*rollout.groups, *rollout.dropped)]
    waiting = [group.prompt.index for group in stage.state()["leftovers"]]
    assert waiting == [] or saves
    everything += waiting
    assert len(everything) == len(set(everything))
    if saves:
        assert sorted(everything) == list(range(stage.state()["source"]["taken"]))
    reward.close()
    events.close()


def check(group, sample, fate):
    """What became of a sample is what its fate says."""
    if fate in FAILED:
        assert sample.ending is Ending.ERROR and sample.reward is None
        assert f"sample {sample.index}" in sample.metadata["error"]
        return
    assert sample.ending is (Ending.LENGTH if fate == "out of time" else Ending.STOP)
    assert sample.metadata["marked_in"] >= sample.metadata.get("start_rollout_id", 0)
    if fate in UNJUDGED:
        assert sample.reward is None and "missing" in sample.verdict
    else:
        assert sample.reward == group.prompt.index
