"""The simulated loop gives what arithmetic gives, where arithmetic can."""

import importlib.util
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "scale_sim", Path(__file__).parents[2] / "benchmarks" / "scale_sim.py"
)
sim = importlib.util.module_from_spec(spec)
sys.modules["scale_sim"] = sim  # dataclasses look their module up
spec.loader.exec_module(sim)

FREE = sim.Costs(
    step_s=((1, 0.01), (2, 0.01)),  # however many there are
    train_tokens_per_s=1000.0,
    optimizer_s=0.0,
    model_bytes=0.0,
    bucket_bytes=0.0,
    check_s=0.0,
    call_s=0.0,
    controller_s=0.0,
    pack_s=0.0,
    token_bytes=0.0,
)
PLAN = sim.Plan(
    mode="in turns",
    num_sampling=2,
    num_learning=2,
    batch=20,
    num_steps=6,
    lengths=sim.fixed(100),
    max_staleness=0,
)


def run(costs=FREE, **plan):
    return sim.Simulation(replace(PLAN, **plan), costs).run()


def test_in_turns_a_step_is_the_sum_of_its_parts():
    found = run()
    # 100 tokens of 0.01 s, then 20 x 100 tokens at 1,000 a second on two devices
    assert found["step_s"] == pytest.approx(1.0 + 1.0)
    assert found["total_s"] == pytest.approx(12.0)
    assert found["sampler_idle"] == pytest.approx(0.5)
    assert found["trainer_idle"] == pytest.approx(0.5)
    assert found["staleness"] == 0


@pytest.mark.parametrize(("mode", "limit"), [("one ahead", 1), ("without end", 1)])
@pytest.mark.parametrize(("num_learning", "slower_s"), [(1, 2.0), (4, 1.0)])
def test_overlapped_a_step_is_its_slower_half(mode, limit, num_learning, slower_s):
    full = replace(FREE, max_running=10)  # one batch at a time
    found = run(full, mode=mode, max_staleness=limit, num_learning=num_learning, num_steps=9)
    assert found["step_s"] == pytest.approx(slower_s)
    assert found["staleness"] <= 1


def test_more_sequences_than_an_engine_takes_are_sampled_in_waves():
    costs = replace(FREE, max_running=5)
    assert run(costs)["step_s"] == pytest.approx(2.0 + 1.0)


def test_sequences_share_an_engine():
    costs = replace(FREE, step_s=((1, 0.01), (11, 0.11)))
    assert run(costs, num_sampling=1, batch=8)["step_s"] == pytest.approx(100 * 0.08 + 0.4)


def test_a_controller_that_is_slower_than_the_engines_sets_the_pace():
    costs = replace(FREE, controller_s=0.5)
    found = run(costs)
    assert found["step_s"] == pytest.approx(1.0 + 20 * 0.5 + 1.0)
    assert run(replace(costs, num_controllers=4))["step_s"] == pytest.approx(1.0 + 2.5 + 1.0)
    # each simulated device stands for three: three times the samples pass
    assert run(costs, weight=3)["step_s"] == pytest.approx(1.0 + 30.0 + 1.0)


def test_a_weight_update_holds_everybody_up():
    costs = replace(FREE, check_s=0.25)
    assert run(costs)["step_s"] == pytest.approx(2.25)
    assert run(costs)["publishing"] == pytest.approx(0.25 / 2.25)
    ahead = run(costs, mode="without end", max_staleness=1, num_steps=9, num_learning=1)
    assert ahead["step_s"] == pytest.approx(2.25)


def test_long_answers_stall_a_round_and_not_the_endless_mode():
    def mostly_short(chance):
        return 1000 if chance.random() < 0.05 else 50

    turns = run(lengths=mostly_short, num_steps=12, batch=40)
    endless = run(lengths=mostly_short, num_steps=12, batch=40, mode="without end", max_staleness=3)
    assert turns["step_s"] > 10 > endless["step_s"]
    assert endless["stalest"] <= 3


def test_costs_of_an_update_grow_with_the_depth_of_the_tree():
    costs = sim.Costs()
    one_host = 8e9 / 306e9 + 0.017 + 8 * 0.0012
    assert costs.update_s(8) == pytest.approx(one_host)
    many = costs.update_s(4096) - 4096 * 0.0012
    assert many == pytest.approx(8e9 / 306e9 + 0.017 + (8e9 + 9 * 512 * 2**20) / 40e9)
    assert replace(costs, calls_by_tree=True).update_s(4096) < many + 0.05
    assert math.isclose(costs.token_s(160), (0.00556 + 0.01071) / 2)


def test_lengths_are_within_their_bounds():
    chance = random.Random(0)
    lengths = [sim.long_tailed(chance) for _ in range(2000)]
    assert min(lengths) >= 16 and max(lengths) == 16_384
    assert 1800 < sorted(lengths)[1000] < 2200
