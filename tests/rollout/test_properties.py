"""Rounds over a fake engine: nothing lost, nothing doubled, whatever finishes, fails or is cut."""

import importlib.util
import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings, strategies

from tandem.rollout import EventLoop
from tandem.rollout.rules import KEEP, Ruling
from tandem.types import Ending

spec = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("fakes.py"))
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=strategies.integers(0, 2**31),
    fetch_size=strategies.integers(3, 9),
    num_samples=strategies.integers(1, 3),
    order=strategies.sampled_from(["finished", "prompts"]),
    saves=strategies.booleans(),
    filters=strategies.booleans(),
    concurrency=strategies.sampled_from([2, 5, 100]),
)
def test_every_prompt_is_accounted_for(
    seed, fetch_size, num_samples, order, saves, filters, concurrency
):
    from_seed = random.Random(seed)
    lengths = [from_seed.randrange(1, 30) for _ in range(997)]
    engine = fakes.StepEngine(lambda prompt, sample: lengths[(prompt * 31 + sample) % 997])
    reward = fakes.LateReward(lambda prompt, sample: float(prompt), 0.0005, from_seed)
    events = EventLoop()
    stage = fakes.build_stage(
        engine,
        reward,
        events,
        num_samples=num_samples,
        concurrency=concurrency,
        batch_size=3,
        fetch_size=fetch_size,
        order=order,
        saves=saves,
        keeps=(lambda g: Ruling(reason="x") if g.prompt.index % 4 == 1 else KEEP)
        if filters
        else None,
    )
    kept, dropped = [], []
    for step in range(4):
        engine.version = step
        rollout = stage.collect(step)
        assert len(rollout.groups) == 3
        for group in rollout.groups:
            assert [s.position for s in group.samples] == list(range(num_samples))
            for s in group.samples:
                assert s.ending is Ending.STOP and s.reward == group.prompt.index
                assert s.num_sampled == lengths[(group.prompt.index * 31 + s.position) % 997]
        kept += [group.prompt.index for group in rollout.groups]
        dropped += [group.prompt.index for group in rollout.dropped]
        assert not engine.live
    waiting = [group.prompt.index for group in stage.state()["leftovers"]]
    everything = [*kept, *dropped, *waiting]
    assert len(everything) == len(set(everything))
    assert waiting == [] or saves
    if saves:
        assert sorted(everything) == list(range(stage.state()["source"]["taken"]))
    if filters:
        assert all(n % 4 == 1 for n in dropped) and not any(n % 4 == 1 for n in kept)
    assert len(reward.judged) == len(set(reward.judged))
    events.close()
