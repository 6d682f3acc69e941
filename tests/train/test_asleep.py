"""Optimizer state in host memory while others use its device: here the device is the CPU."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tandem.config import OptimConfig
from tandem.train import AdamW
from tandem.train.asleep import Sleeper

torch.set_num_threads(1)

BF16 = {"dtype": torch.bfloat16}


def held(trainer):
    """Bytes of optimizer state where steps want it."""
    optimizer = trainer._descent.optimizer
    kept = [*optimizer._masters.values(), *optimizer._first.values(), *optimizer._second.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def test_a_round_trip_keeps_every_bit_and_empties_the_tensors_in_between():
    generator = torch.Generator().manual_seed(0)
    named = {
        "odd": torch.randn(3, 5, 7, generator=generator),
        "bf16": torch.randn(11, generator=generator).bfloat16(),
        "none": torch.zeros(0, 4),
    }
    before = {name: tensor.clone() for name, tensor in named.items()}
    sleeper = Sleeper(named)
    for _ in range(2):
        sleeper.sleep()
        assert [tensor.untyped_storage().nbytes() for tensor in named.values()] == [0, 0, 0]
        assert all(torch.equal(sleeper.tensors()[name], before[name]) for name in named)
        sleeper.wake()
        assert all(torch.equal(named[name], before[name]) for name in named)
    assert sleeper.num_bytes == 3 * 5 * 7 * 4 + 11 * 2


def test_what_is_written_while_they_sleep_is_what_they_wake_with():
    tensor = torch.ones(4)
    sleeper = Sleeper({"one": tensor})
    sleeper.sleep()
    sleeper.tensors()["one"].fill_(7)
    sleeper.wake()
    assert tensor.tolist() == [7] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16"},
        {"use_stateless_adam": True},
        {"optimizer_cpu_offload": True},
    ],
)
def test_training_with_naps_gives_the_bits_of_training_without(
    make_decoder, make_trainer, make_groups, learn, changes
):
    digests, rows = {}, {}
    for sleeps in (False, True):
        trainer = make_trainer(decoder=make_decoder(**BF16), optim=changes)
        rows[sleeps] = []
        for seed in range(3):
            if sleeps:
                awake = held(trainer)
                trainer.sleep()
                assert awake - held(trainer) == trainer.num_movable_bytes
                trainer.weights(seed)
                trainer.wake()
                assert held(trainer) == awake
            rows[sleeps] += learn(trainer, make_groups(seed=seed)).rows
        digests[sleeps] = trainer.state_digest()
        trainer.sleep()
        assert trainer.state_digest() == digests[sleeps]
    assert digests[True] == digests[False] and rows[True] == rows[False]


def test_state_that_lies_in_host_memory_anyway_has_nothing_to_move(make_decoder, make_trainer):
    trainer = make_trainer(decoder=make_decoder(**BF16), optim={"optimizer_cpu_offload": True})
    assert trainer.num_movable_bytes == 0
    assert make_trainer(decoder=make_decoder(**BF16)).num_movable_bytes > 0


def test_a_critics_state_sleeps_with_the_policys(make_decoder, make_trainer, make_groups, learn):
    alone = make_trainer(decoder=make_decoder(**BF16)).num_movable_bytes
    digests = []
    for sleeps in (False, True):
        trainer = make_trainer(
            decoder=make_decoder(**BF16), algo={"advantage_estimator": "ppo", "kl_coef": 0.0}
        )
        assert trainer.num_movable_bytes > 2 * alone * 0.9
        for _ in range(2):
            if sleeps:
                trainer.sleep()
                trainer.wake()
            learn(trainer, make_groups())
        digests.append(trainer.state_digest())
    assert digests[0] == digests[1]


def test_a_step_while_asleep_is_a_fault_of_ours(make_decoder, make_trainer, make_groups, learn):
    trainer = make_trainer(decoder=make_decoder(**BF16))
    trainer.sleep()
    with pytest.raises(AssertionError, match="asleep"):
        learn(trainer, make_groups())


def test_times_of_sleeping_and_waking_are_reported_with_the_step(
    make_decoder, make_trainer, make_groups, learn
):
    trainer = make_trainer(decoder=make_decoder(**BF16))
    assert not {"sleep", "wake_up"} & set(learn(trainer, make_groups()).seconds)
    trainer.sleep()
    trainer.wake()
    seconds = learn(trainer, make_groups()).seconds
    assert seconds["sleep"] > 0 and seconds["wake_up"] > 0


@pytest.mark.parametrize("in_background", [False, True])
def test_a_checkpoint_may_be_written_and_read_while_asleep(
    make_decoder, make_trainer, make_groups, learn, tmp_path, in_background
):
    from tandem.checkpoint.background import BackgroundSaves
    from tandem.train import LocalTrainer

    first = make_trainer(decoder=make_decoder(**BF16))
    if in_background:
        first = LocalTrainer(make_decoder(**BF16), first._learning, saves=BackgroundSaves())
    learn(first, make_groups())
    awake = first.state_digest()
    first.sleep()
    first.save(tmp_path, 0, {})
    first.finish_saves()
    second = make_trainer(decoder=make_decoder(3, **BF16))
    second.sleep()
    second.load(tmp_path, 0)
    assert held(second) == 0, "a load must not take the memory that others have now"
    second.wake()
    assert second.state_digest() == awake
    first.wake()
    for trainer in (first, second):
        learn(trainer, make_groups(seed=1))
    assert first.state_digest() == second.state_digest()


def test_a_fresh_start_may_be_made_while_asleep(
    make_decoder, make_trainer, make_groups, learn, tmp_path
):
    first = make_trainer(decoder=make_decoder(**BF16))
    learn(first, make_groups())
    first.save(tmp_path, 0, {})
    found = []
    for sleeps in (False, True):
        trainer = make_trainer(decoder=make_decoder(3, **BF16))
        learn(trainer, make_groups(seed=2))
        if sleeps:
            trainer.sleep()
        trainer.load_weights(tmp_path, 0)
        trainer.wake()
        found.append(trainer.state_digest())
    assert found[0] == found[1]


def test_an_optimizer_of_fp32_weights_moves_its_moments_alone():
    named = {"matrix": torch.nn.Parameter(torch.ones(4, 4))}
    optimizer = AdamW(named.items(), OptimConfig())
    assert optimizer.sleeper.num_bytes == 2 * 4 * 4 * 4
    optimizer.sleeper.sleep()
    assert named["matrix"].sum() == 16


def test_the_benchmark_measures_both_ways_and_that_every_bit_comes_back(monkeypatch):
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("offload", folder / "offload.py")
    offload = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(offload)
    named = {"matrix": torch.nn.Parameter(torch.ones(64, 64).bfloat16())}
    rows, facts = offload.measured(AdamW(named.items(), OptimConfig()), torch.device("cpu"))
    assert facts["is_whole"] and facts["state_GiB"] == 3 * 4 * 64 * 64 / 2**30
    assert [row["way"] for row in rows] == ["sleep", "wake", "wake beside products"]
