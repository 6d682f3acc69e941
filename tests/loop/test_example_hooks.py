"""Every example of a hook runs, and does what it says."""

import json

import pytest
import torch

HOOKS = "examples.hooks."


@pytest.fixture
def train(tiny, run_script, tmp_path):
    """Two rollouts with more flags; gives the run folder, or the error of a run that failed."""

    def run(*flags, fails=False):
        flags = [flag.format(run=tmp_path / "run") for flag in flags]
        done = run_script("train.py", *tiny.argv(tmp_path / "run", *flags, num_rollout=2))
        if fails:
            assert done.returncode != 0
            return done.stderr
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / "run"

    return run


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / name).open()]


def test_generate_sample_hooks_filters_and_logs_work_together(train, tiny):
    run = train(
        "--custom-generate-function-path", HOOKS + "generate.in_two_pieces",
        "--rollout-sample-hook-path", HOOKS + "sample_hook.count_digits",
        "--rollout-sample-hook-path", HOOKS + "sample_hook.remember_rollout",
        "--dynamic-sampling-filter-path", HOOKS + "dynamic_filter.not_all_alike",
        "--partial-rollout", "--over-sampling-batch-size", "6",
        "--sglang-server-concurrency", "6",
        "--buffer-filter-path", HOOKS + "buffer_filter.nearly_done_first",
        "--rollout-sample-filter-path", HOOKS + "sample_filter.leave_out_the_longest",
        "--rollout-all-samples-process-path", HOOKS + "all_samples.write_counts",
        "--custom-rollout-log-function-path", HOOKS + "logs.log_rollout",
        "--custom-eval-rollout-log-function-path", HOOKS + "logs.log_evaluation",
        "--eval-prompt-data", "held", f"{tiny.folder}/heldout.jsonl", "--eval-interval", "2",
    )  # fmt: skip
    counts = rows_of(run, "counts.jsonl")
    assert len(counts) == 2 and all(row["groups"] >= 4 for row in counts)
    mine = rows_of(run, "mine.jsonl")
    assert [row["samples"] for row in mine if "rollout" in row] == [16, 16]
    assert [row["sets"] for row in mine if "evaluation" in row] == [{"held": 10}] * 2
    samples = [row for row in rows_of(run, "samples.jsonl") if row["set"] is None]
    assert any(row["sampled_tokens"] == 0 for row in samples)
    assert all(" so " in row["response"] for row in samples)


def test_samples_of_one_attempt_share_a_reward_and_count_once(train):
    run = train("--custom-generate-function-path", HOOKS + "fan_out.draft_and_revision")
    rows = [row for row in rows_of(run, "metrics.jsonl") if "rollout/num_samples" in row]
    # 4 prompts x 4 attempts of two samples each
    assert [row["rollout/num_samples"] for row in rows] == [32, 32]


def test_what_is_trained_on_is_what_the_conversion_gave_and_the_last_word_left(train):
    run = train(
        "--custom-convert-samples-to-train-data-path", HOOKS + "convert.shorter_is_better",
        "--rollout-data-postprocess-path", HOOKS + "postprocess.drop_certain_tokens",
        "--dump-details", "{run}/all", "--num-steps-per-rollout", "1",
        "--custom-rm-path", "tests.loop.spoiled.solved_by_one_prompt",
    )  # fmt: skip
    for step in (0, 1):
        sampled = torch.load(run / f"all/rollout_data/{step}.pt", weights_only=True)["samples"]
        trained = torch.load(run / f"all/train_data/{step}.pt", weights_only=True)["samples"]
        unsolved = {tuple(s["tokens"]): s for s in sampled if s["reward"] != 1}
        assert 0 < len(unsolved) < len(sampled) and len(trained) == len(unsolved)
        for one in trained:
            before = unsolved[tuple(one["tokens"].tolist())]
            about = slice(-before["response_length"] - 1, -1)
            sure = [log_prob >= -0.01 for log_prob in before["rollout_log_probs"]]
            assert one["mask"][about].tolist() == [float(not each) for each in sure]
    rows = rows_of(run, "metrics.jsonl")
    assert all(row["train/loss"] == row["train/loss"] for row in rows if "train/loss" in row)


def test_data_source_of_ones_own_goes_on_where_it_was(train):
    flags = ["--data-source-path", HOOKS + "data_source.Sums", "--disable-rollout-global-dataset"]
    run = train(*flags)
    assert json.loads((run / "sums_0.json").read_text()) == {"next": 4}
    assert json.loads((run / "sums_1.json").read_text()) == {"next": 8}


def test_rollout_and_evaluation_of_ones_own(train, tiny):
    run = train(
        "--rollout-function-path", HOOKS + "rollout_function.shortest_of_two_tries",
        "--eval-function-path", HOOKS + "rollout_function.ask_one_question",
        "--eval-prompt-data", "held", f"{tiny.folder}/heldout.jsonl", "--eval-interval", "1",
    )  # fmt: skip
    rows = rows_of(run, "metrics.jsonl")
    assert rows[0]["rollout/num_tries"] == 2.0
    assert "eval/mine" in rows[0]


@pytest.mark.parametrize(
    ("flag", "path", "wanted"),
    [
        ("--custom-generate-function-path", "no.such.module", "importing no.such failed"),
        ("--custom-generate-function-path", HOOKS + "generate.missing", "no function 'missing'"),
        ("--custom-generate-function-path", HOOKS + "sample_hook.count_digits", "cannot be called"),
        ("--custom-generate-function-path", HOOKS + "logs.write", "cannot be called"),
        ("--dynamic-sampling-filter-path", HOOKS + "generate.in_two_pieces", "cannot be called"),
        ("--rollout-sample-filter-path", "slime.rollout.mine.fn", "slime is not installed here"),
    ],
)
def test_a_hook_that_cannot_be_called_is_refused_at_the_start(flag, path, wanted, train):
    error = train(flag, path, fails=True)
    assert f"{flag} {path}" in error and wanted in error
    assert "Traceback" not in error
