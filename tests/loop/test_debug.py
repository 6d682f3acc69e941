"""Rollouts as files, and runs of which one half is left out."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tandem.config import load_config
from tandem.errors import ConfigError, DataError, TandemError
from tandem.loop import train
from tandem.rollout import EventLoop
from tandem.runtime.local import build

NUM_ROLLOUTS = 3
DUMP = "dump/{rollout_id}.pt"


def drive(argv):
    """The stages of a run, after it."""
    with ExitStack() as stack:
        events = EventLoop()
        stack.callback(events.close)
        stages, cfg = build(load_config(argv), events, stack)
        train(cfg, stages)
        return stages


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """A folder with the dump of a whole run, and the digests of its weights."""
    folder = tmp_path_factory.mktemp("written")
    more = ("--save-debug-rollout-data", f"{folder}/{DUMP}", "--over-sampling-batch-size", "6")
    stages = drive(tiny.argv(folder / "run", *more, num_rollout=NUM_ROLLOUTS))
    return folder, stages.trainer.state_digest()


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def without_prompts(argv):
    """The words of a launch without `--prompt-data` and its value."""
    place = argv.index("--prompt-data")
    return [*argv[:place], *argv[place + 2 :]]


def test_a_dump_holds_plain_values_under_the_dialects_names(written):
    folder, _ = written
    assert sorted(path.name for path in (folder / "dump").iterdir()) == ["0.pt", "1.pt", "2.pt"]
    content = torch.load(folder / "dump/1.pt", weights_only=True)
    assert content["rollout_id"] == 1
    assert len(content["samples"]) == 16
    for sample in content["samples"]:
        length = sample["response_length"]
        assert len(sample["loss_mask"]) == len(sample["rollout_log_probs"]) == length > 0
        assert len(sample["tokens"]) > length
        assert sample["weight_versions"] == ["1"]
        assert sample["status"] in ("completed", "truncated")
        assert sample["reward"] in (0, 1)
        assert "Count from" in sample["prompt"]


def test_training_on_a_dump_gives_the_weights_of_the_run_that_wrote_it(tiny, written, tmp_path):
    folder, digest = written
    more = ("--load-debug-rollout-data", f"{folder}/{DUMP}")
    argv = without_prompts(tiny.argv(tmp_path / "run", *more, num_rollout=NUM_ROLLOUTS))
    assert drive(argv).trainer.state_digest() == digest


def test_training_on_a_dump_is_resumed_to_the_same_bits(tiny, written, tmp_path):
    folder, digest = written
    more = ("--load-debug-rollout-data", f"{folder}/{DUMP}")
    drive(tiny.argv(tmp_path / "run", *more, num_rollout=1))
    stages = drive(tiny.argv(tmp_path / "run", *more, num_rollout=NUM_ROLLOUTS))
    assert stages.start == 1
    assert stages.trainer.state_digest() == digest


def test_a_missing_or_broken_dump_is_named(tiny, tmp_path):
    (tmp_path / "0.pt").write_bytes(b"no dump")
    for template, said in ((f"{tmp_path}/0.pt", "0.pt is no rollout"), ("none.pt", "not there")):
        argv = tiny.argv(tmp_path / "run", "--load-debug-rollout-data", template, num_rollout=1)
        with pytest.raises(DataError, match=said):
            drive(argv)


def test_sampling_alone_trains_and_saves_nothing(tiny, written, tmp_path):
    folder, _ = written
    more = ("--debug-rollout-only", "--save-debug-rollout-data", f"{tmp_path}/{DUMP}")
    heldout = ("--eval-prompt-data", "held", f"{tiny.folder}/heldout.jsonl", "--eval-interval", "1")
    drive(tiny.argv(tmp_path / "run", *more, *heldout, num_rollout=2))
    first, second = (torch.load(tmp_path / f"dump/{n}.pt", weights_only=True) for n in (0, 1))
    same = torch.load(folder / "dump/0.pt", weights_only=True)
    assert [s["tokens"] for s in first["samples"]] == [s["tokens"] for s in same["samples"]]
    assert {tuple(s["weight_versions"]) for s in second["samples"]} == {("0",)}
    assert not list((tmp_path / "run").glob("iter_*"))
    rows = [row for row in rows_of(tmp_path / "run") if "rollout/raw_reward" in row]
    assert len(rows) == 2
    assert not any("train/loss" in row for row in rows)
    assert any("eval/held" in row for row in rows_of(tmp_path / "run"))


def test_sampling_alone_takes_the_weights_of_a_checkpoint(tiny, written, tmp_path):
    folder, _ = written
    words = tiny.argv(tmp_path / "run", "--debug-rollout-only", num_rollout=4)
    words[words.index("--load") + 1] = f"{folder}/run"
    more = ("--save-debug-rollout-data", f"{tmp_path}/{DUMP}")
    assert drive([*words, *more]).start == 3
    content = torch.load(tmp_path / "dump/3.pt", weights_only=True)
    assert content["samples"][0]["weight_versions"] == ["3"]


def test_training_alone_learns_from_supervised_data_without_an_engine(tiny, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "7"}]}
        for n in range(8)
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"""
        --hf-checkpoint {tiny.folder}/model --prompt-data {path} --input-key messages
        --loss-type sft_loss --num-rollout 2 --rollout-batch-size 4 --lr 1e-2 --save {tmp_path}/run
        --save-debug-rollout-data {tmp_path}/{DUMP} --progress off
    """.split()
    digest = drive(words).trainer.state_digest()
    (row, *_) = [row for row in rows_of(tmp_path / "run") if "train/loss" in row]
    assert "rollout/response_len/mean" in row
    assert not {"rollout/raw_reward", "rollout/truncated_ratio"} & set(row)  # nobody judged it
    words[words.index("--save") + 1] = f"{tmp_path}/alone"
    assert drive([*words, "--debug-train-only"]).trainer.state_digest() == digest
    replay = ("--load-debug-rollout-data", f"{tmp_path}/{DUMP}")
    words[words.index("--save") + 1] = f"{tmp_path}/replay"
    place = words.index("--save-debug-rollout-data")
    words = [*words[:place], *words[place + 2 :]]
    assert drive([*words, *replay]).trainer.state_digest() == digest


def test_training_alone_leaves_held_out_sets_out_and_says_so(tiny, written, tmp_path):
    folder, digest = written
    more = ("--load-debug-rollout-data", f"{folder}/{DUMP}")
    heldout = ("--eval-prompt-data", "held", f"{tiny.folder}/heldout.jsonl", "--eval-interval", "1")
    stages = drive(tiny.argv(tmp_path / "run", *more, *heldout, num_rollout=NUM_ROLLOUTS))
    assert stages.trainer.state_digest() == digest
    assert not any("eval/held" in row for row in rows_of(tmp_path / "run"))


def test_training_alone_needs_something_to_train_on(tiny, tmp_path):
    with pytest.raises(ConfigError, match="--load-debug-rollout-data or --loss-type sft_loss"):
        load_config(tiny.argv(tmp_path / "run", "--debug-train-only"))


def test_dump_details_writes_both_dumps_and_a_tokenizer(tiny, tmp_path):
    drive(tiny.argv(tmp_path / "run", "--dump-details", f"{tmp_path}/all", num_rollout=2))
    folder = tmp_path / "all"
    assert (folder / "tokenizer/tokenizer.json").is_file()
    for rollout_id in (0, 1):
        sampled = torch.load(folder / f"rollout_data/{rollout_id}.pt", weights_only=True)
        trained = torch.load(folder / f"train_data/{rollout_id}.pt", weights_only=True)
        assert sampled["rollout_id"] == trained["rollout_id"] == rollout_id
        by_tokens = {tuple(one["tokens"]): one for one in sampled["samples"]}
        assert {one["step"] for one in trained["samples"]} == {0, 1}
        assert len(trained["samples"]) == len(sampled["samples"]) == 16
        for one in trained["samples"]:
            before = by_tokens[tuple(one["tokens"].tolist())]
            length = before["response_length"]
            about = slice(-length - 1, -1)  # entry t speaks of token t + 1
            assert one["mask"][about].tolist() == before["loss_mask"]
            assert one["engine_logprobs"][about].tolist() == before["rollout_log_probs"]
            assert len(one["advantages"]) == len(one["reference_logprobs"]) == len(one["tokens"])


def test_a_dump_of_training_data_changes_no_weight_and_goes_on_after_a_resume(
    tiny, written, tmp_path
):
    folder, digest = written
    more = ("--load-debug-rollout-data", f"{folder}/{DUMP}")
    dumps = ("--save-debug-train-data", f"{tmp_path}/train/{{rollout_id}}.pt")
    drive(tiny.argv(tmp_path / "run", *more, *dumps, num_rollout=2))
    drive(tiny.argv(tmp_path / "run", *more, *dumps, num_rollout=NUM_ROLLOUTS))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["0.pt", "1.pt", "2.pt"]
    # nothing is left to do, so this only reads what the last one saved
    stages = drive(tiny.argv(tmp_path / "run", *more, num_rollout=NUM_ROLLOUTS))
    assert stages.trainer.state_digest() == digest


def test_a_share_of_a_dump_is_its_first_and_last_groups(tiny, written, tmp_path):
    folder, _ = written
    more = ("--load-debug-rollout-data", f"{folder}/{DUMP}")
    share = ("--load-debug-rollout-data-subsample", "0.5", "--num-steps-per-rollout", "1")
    drive(tiny.argv(tmp_path / "run", *more, *share, num_rollout=1))
    whole = torch.load(folder / "dump/0.pt", weights_only=True)["samples"]
    prompts = list(dict.fromkeys(one["group_index"] for one in whole))
    (row,) = [row for row in rows_of(tmp_path / "run") if "train/loss" in row]
    assert row["rollout/num_samples"] == 8
    lines = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").open()]
    assert {line["prompt_index"] for line in lines} == {prompts[0], prompts[-1]}


def test_a_replay_that_keeps_its_engine_evaluates_with_what_it_learned(tiny, written, tmp_path):
    folder, digest = written
    more = ("--load-forge-rollout-data", f"{folder}/{DUMP}")
    argv = without_prompts(tiny.argv(tmp_path / "run", *more, num_rollout=NUM_ROLLOUTS))
    assert drive(argv).trainer.state_digest() == digest
    ours = [row for row in rows_of(tmp_path / "run") if "eval/heldout" in row]
    theirs = [row for row in rows_of(folder / "run") if "eval/heldout" in row]
    assert len(ours) > 1
    assert [row["eval/heldout"] for row in ours] == [row["eval/heldout"] for row in theirs]


def test_a_run_that_tests_itself_passes_and_repeats_its_gradient_norms(tiny, tmp_path):
    norms = f"{tmp_path}/{{role}}/{{rollout_id}}_{{step_id}}.json"
    words = ("--ci-test", "--ci-train-rollout-logprob-abs-diff-threshold", "1e-4")
    drive(tiny.argv(tmp_path / "a", *words, "--ci-save-grad-norm", norms, num_rollout=2))
    found = sorted(path.name for path in (tmp_path / "actor").iterdir())
    assert found == ["0_0.json", "0_1.json", "1_0.json", "1_1.json"]
    drive(tiny.argv(tmp_path / "b", *words, "--ci-load-grad-norm", norms, num_rollout=2))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ci-test", "--ci-train-rollout-logprob-abs-diff-threshold", "1e-12"), "apart on"),
        (("--ci-load-grad-norm", "absent/{role}_{step_id}.json"), "gradient norm is .* has nan"),
    ],
)
def test_a_self_test_that_fails_stops_the_run(tiny, tmp_path, words, said):
    with pytest.raises(TandemError, match=f"self-test of rollout 0: .*{said}"):
        drive(tiny.argv(tmp_path / "run", *words, num_rollout=1))
