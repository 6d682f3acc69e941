"""Rounds that choose their groups or leave some for later, and halves of runs, over processes."""

import pytest
import torch

from tandem.checkpoint import torch_dist
from tandem.rollout import decode
from tandem.types import Ending

pytestmark = pytest.mark.usefixtures("cluster")
APART = "--actor-num-gpus-per-node 1 --rollout-num-gpus"
# few slots, so that answers of one length end at different steps
CHOOSING = """--rollout-seed 3 --partial-rollout --over-sampling-batch-size 7
    --sglang-server-concurrency 6 --rollout-max-response-len 30 --max-tokens-per-gpu 200
    --dynamic-sampling-filter-path
    slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"""
NUM_ROLLOUT = 3


def dumped(folder, step):
    """What was sampled: tokens, log-probs and versions, in order."""
    content = torch.load(folder / f"{step}.pt", weights_only=True)
    return [
        (s["index"], s["tokens"], s["rollout_log_probs"], s["weight_versions"])
        for s in content["samples"]
    ]


@pytest.fixture(scope="module")
def chosen_of(rows_of, tmp_path_factory):
    """What the rollouts of a run gave, its rows, and its folder; saved after each rollout."""

    def chosen(words, num_rollout=NUM_ROLLOUT, folder=None):
        folder = folder or tmp_path_factory.mktemp("chosen")
        keeping = f"--save {folder} --load {folder} --save-interval 1"
        dump = f"--save-debug-rollout-data {folder}/{{rollout_id}}.pt"
        rows = rows_of(f"{words} {CHOOSING} {keeping} {dump}", num_rollout, folder)
        return [dumped(folder, step) for step in range(num_rollout)], rows, folder

    return chosen


@pytest.fixture(scope="module")
def one_process(chosen_of):
    return chosen_of("--runtime local", 2)


@pytest.fixture(scope="module")
def two_engines(chosen_of):
    return chosen_of(f"{APART} 2")


def left_over(folder, step):
    return decode(torch_dist.read_extra(torch_dist.folder_of(folder, step))["unfinished"])


def test_one_engine_apart_chooses_and_cuts_off_as_in_one_process(chosen_of, one_process):
    alone, _, here = one_process
    apart, _, there = chosen_of(f"{APART} 1", 2)
    assert apart == alone
    for ours, theirs in zip(left_over(there, 1), left_over(here, 1), strict=True):
        assert [s.tokens_T.tolist() for s in ours.samples] == [
            s.tokens_T.tolist() for s in theirs.samples
        ]


def test_what_two_engines_cut_off_is_kept_and_goes_on(two_engines, one_process):
    rollouts, rows, folder = two_engines
    both = [
        {index: tokens for index, tokens, *_ in one[0][0]} for one in (two_engines, one_process)
    ]
    shared = both[0].keys() & both[1].keys()
    assert shared and all(both[0][index] == both[1][index] for index in shared)
    for step in range(NUM_ROLLOUT):
        samples = [s for group in left_over(folder, step) for s in group.samples]
        assert any(s.ending is Ending.ABORT and s.sampled_T.any() for s in samples)
    assert any(row["rollout/dynamic_filter/num_dropped"] for row in rows)
    assert rows[1]["rollout/num_continued_groups"]
    assert any(len(set(versions)) > 1 for *_, versions in rollouts[1])
    indices = [index for rollout in rollouts for index, *_ in rollout]
    assert len(indices) == len(set(indices))


def test_rounds_of_two_engines_repeat_also_from_a_checkpoint(two_engines, chosen_of):
    rollouts, _, folder = two_engines
    again = chosen_of(f"{APART} 2", 1)
    assert again[0] == rollouts[:1]
    resumed = chosen_of(f"{APART} 2", NUM_ROLLOUT, again[2])
    assert resumed[0] == rollouts
    ours, theirs = (left_over(one, NUM_ROLLOUT - 1) for one in (again[2], folder))
    assert [g.prompt.index for g in ours] == [g.prompt.index for g in theirs]


def test_sampling_alone_and_training_alone_give_what_a_whole_run_does(rows_of, tmp_path):
    whole = rows_of(f"--runtime local --save-debug-rollout-data {tmp_path}/whole/{{rollout_id}}.pt")
    dump = f"--save-debug-rollout-data {tmp_path}/alone/{{rollout_id}}.pt"
    rows = rows_of(f"--debug-rollout-only --rollout-num-gpus 2 {dump}")
    assert dumped(tmp_path / "alone", 0) == dumped(tmp_path / "whole", 0)
    assert {v for *_, versions in dumped(tmp_path / "alone", 1) for v in versions} == {"0"}
    assert not any("train/loss" in row for row in rows)
    dump = f"--load-debug-rollout-data {tmp_path}/whole/{{rollout_id}}.pt"
    rows = rows_of(f"--debug-train-only --actor-num-gpus-per-node 2 {dump}")
    for row, wanted in zip(rows, whole, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/kl_loss"):
            assert row[name] == pytest.approx(wanted[name], rel=2e-4, abs=2e-6), name
