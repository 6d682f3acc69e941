import json

import pytest

from tandem.config import AlgoConfig, Config, ObserveConfig
from tandem.errors import ConfigError, Stopped
from tandem.observe.journal import read_rows
from tandem.observe.run import RunLog
from tandem.observe.timers import Span
from tandem.types import Rollout, StepStats

QUIET = Config(observe=ObserveConfig(progress="off"))

SPANS = (
    Span(name="rollout", begin_s=0.0, seconds=6.0),
    Span(name="annotate", begin_s=6.0, seconds=1.0),
    Span(name="train", begin_s=7.0, seconds=2.0),
    Span(name="update_weights", begin_s=9.0, seconds=1.0),
)


@pytest.fixture
def log_step(rewarded):
    """Logs a step whose rollout has the given rewards."""

    def log_one(log, step, *rewards, rows=({"loss": 0.5, "lr-pg_0": 1e-6},)):
        groups = rewarded(*(rewards or ([1.0, 0.0],)))
        rollout = Rollout(step=step, groups=groups, metrics={"perf/rollout_time": 6.0})
        stats = StepStats(rows=rows, num_tokens=30, seconds={"log_probs": 0.5})
        log.step(step, rollout, groups, stats, {"update_weights_bytes": 8.0}, SPANS)

    return log_one


def open_log(folder, *, start=0, config=QUIET):
    return RunLog(folder, config, start=start, num_rollout=4)


def steps_in(folder, name="metrics.jsonl"):
    return [row["step"] for row in read_rows(folder / name)]


def test_a_step_is_one_row_with_the_dialects_names(tmp_path, log_step):
    log = open_log(tmp_path)
    log_step(log, 0)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    log.close()
    assert row["rollout/raw_reward"] == 0.5
    assert row["rollout/response_len/mean"] == 3
    assert row["rollout/num_tokens"] == 6
    assert row["train/loss"] == 0.5
    assert row["train/num_tokens"] == 30
    assert row["perf/update_weights_bytes"] == 8
    assert row["perf/tokens_per_gpu_per_sec"] == 1
    assert row["perf/rollout_time"] == 6
    assert row["perf/log_probs_time"] == 0.5
    assert row["perf/actor_train_time"] == 2
    assert row["perf/actor_train_tok_per_s"] == 15
    assert row["perf/train_time"] == 3
    assert row["perf/step_time"] == 10
    assert row["perf/wait_time_ratio"] == pytest.approx(0.7)
    assert "train_steps" not in row


def test_several_optimizer_steps_are_averaged_and_kept(tmp_path, log_step):
    log = open_log(tmp_path)
    rows = (
        {"loss": 1.0, "lr-pg_0": 1e-6, "train/step": 0},
        {"loss": 3.0, "lr-pg_0": 2e-6, "train/step": 1},
    )
    log_step(log, 0, rows=rows)
    log.close()
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["train/loss"] == 2
    assert row["train/lr-pg_0"] == 2e-6
    assert row["train/step"] == 1
    assert [one["train/loss"] for one in row["train_steps"]] == [1, 3]


def test_rollouts_that_are_not_trained_on_are_logged_too(tmp_path, rewarded):
    log = open_log(tmp_path)
    groups = rewarded([1.0, 0.0])
    log.step(0, Rollout(step=0, groups=groups), groups, None, {}, ())
    log.close()
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["rollout/raw_reward"] == 0.5
    assert not any(name.startswith("train/") for name in row)


def test_evaluation_of_a_version_shares_the_row_of_the_rollout_that_it_samples(tmp_path, log_step):
    log = open_log(tmp_path)
    log.evaluation(0, {"eval/sort": 0.25})
    log_step(log, 0)
    log.evaluation(1, {"eval/sort": 0.5})
    log.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert [row["eval/sort"] for row in rows] == [0.25, 0.5]
    assert [row["eval/step"] for row in rows] == [0, 1]
    assert "rollout/raw_reward" in rows[0]


def test_a_run_that_was_killed_and_goes_on_has_each_step_once(tmp_path, log_step):
    killed = open_log(tmp_path)  # never closed
    for step in range(3):
        log_step(killed, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rollout/ra')
    resumed = open_log(tmp_path, start=2)
    for step in (2, 3):
        log_step(resumed, step)
    resumed.close()
    assert steps_in(tmp_path) == [0, 1, 2, 3]
    assert sorted(set(steps_in(tmp_path, "samples.jsonl"))) == [0, 1, 2, 3]
    assert len(steps_in(tmp_path, "samples.jsonl")) == 8
    run = json.loads((tmp_path / "run.json").read_text())
    assert [start["step"] for start in run["starts"]] == [0, 2]


def test_a_run_that_begins_anew_moves_the_earlier_one_aside(tmp_path, log_step):
    first = open_log(tmp_path)
    log_step(first, 0)
    first.close()
    second = open_log(tmp_path)
    second.close()
    assert steps_in(tmp_path) == []
    assert steps_in(tmp_path, "metrics.1.jsonl") == [0]


def test_going_on_from_an_old_checkpoint_keeps_what_is_cut_off(tmp_path, log_step):
    first = open_log(tmp_path)
    for step in range(4):
        log_step(first, step)
    first.close()
    open_log(tmp_path, start=1).close()
    assert steps_in(tmp_path) == [0]
    assert steps_in(tmp_path, "metrics.cut.jsonl") == [1, 2, 3]


def test_evaluation_alone_adds_to_the_run_that_is_there(tmp_path, log_step):
    first = open_log(tmp_path)
    for step in range(4):
        log_step(first, step)
    first.close()
    alone = RunLog(tmp_path, QUIET, start=4, num_rollout=0)
    alone.evaluation(4, {"eval/sort": 0.5})
    alone.close()
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]
    assert "Finished: 4 of 4 steps" in (tmp_path / "report.md").read_text()


def test_evaluation_of_an_old_checkpoint_alone_cuts_no_run(tmp_path, log_step):
    first = open_log(tmp_path)
    for step in range(4):
        log_step(first, step)
    first.close()
    with pytest.raises(ConfigError, match="Set --run-dir to another folder"):
        RunLog(tmp_path, QUIET, start=2, num_rollout=0)
    assert steps_in(tmp_path) == [0, 1, 2, 3]


def test_samples_are_few_and_show_best_and_worst(tmp_path, log_step):
    log = open_log(tmp_path)
    log_step(log, 0, *([[0.0, 1.0, 0.5]] * 9))
    log.close()
    lines = read_rows(tmp_path / "samples.jsonl")
    assert [line["reward"] for line in lines] == [1.0, 0.0] * 4
    assert lines[0]["prompt"] == "prompt 0"
    assert lines[0]["response"] == "an answer"
    assert lines[0]["label"] == "0"
    assert lines[0]["ending"] == "stop"
    assert lines[0]["prompt_tokens"] == 2
    assert lines[0]["sampled_tokens"] == 3
    assert lines[0]["versions"] == [0]


def test_samples_of_an_evaluation_name_their_set(tmp_path, rewarded):
    log = open_log(tmp_path)
    log.evaluation(0, {"eval/sort": 0.5}, {"sort": rewarded([1.0])})
    log.close()
    (line,) = read_rows(tmp_path / "samples.jsonl")
    assert line["set"] == "sort"


def test_batches_of_equal_rewards_are_noted_each_time(tmp_path, log_step):
    log = open_log(tmp_path)
    for step in (0, 1):
        log_step(log, step, [0.0, 0.0], [0.0, 0.0])
    log.close()
    notes = read_rows(tmp_path / "notes.jsonl")
    assert [note["step"] for note in notes] == [0, 1]
    assert notes[0]["text"].startswith("All 4 rewards of this batch are 0")
    report = (tmp_path / "report.md").read_text()
    assert report.count("All 4 rewards of this batch are 0") == 1
    assert "(2 times, first at step 0)" in report
    assert "the mean reward was 0.000 in every single step" in report


def test_missing_verdicts_and_numbers_that_are_not_finite_are_noted(tmp_path, log_step):
    log = open_log(tmp_path)
    log_step(log, 0, [1.0, 0.0, None], rows=({"loss": float("nan"), "grad_norm": 1.0},))
    log.close()
    texts = [note["text"] for note in read_rows(tmp_path / "notes.jsonl")]
    assert texts[0] == "not finite: train/loss"
    assert texts[1].startswith("1 of 3 samples got no verdict")


def test_supervised_steps_need_no_verdicts(tmp_path, log_step):
    config = Config(observe=QUIET.observe, algo=AlgoConfig(loss_type="sft_loss"))
    log = open_log(tmp_path, config=config)
    log_step(log, 0, [None, None])
    log.close()
    assert read_rows(tmp_path / "notes.jsonl") == []


def test_failure_is_in_the_report(tmp_path):
    with pytest.raises(KeyError), open_log(tmp_path):
        raise KeyError("lost")
    report = (tmp_path / "report.md").read_text()
    assert "**Ended early, KeyError: 'lost'**" in report


def test_a_run_that_was_asked_to_stop_says_so(tmp_path):
    with pytest.raises(Stopped), open_log(tmp_path):
        raise Stopped
    assert "**Ended early, asked to stop**" in (tmp_path / "report.md").read_text()


def test_notes_are_in_the_report(tmp_path):
    log = open_log(tmp_path)
    log.note("--overlap-grad-reduce has no effect: there is one device")
    log.close()
    assert "- --overlap-grad-reduce has no effect" in (tmp_path / "report.md").read_text()
