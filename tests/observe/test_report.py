import pytest

from tandem.errors import DataError
from tandem.observe.journal import append_lines, write_json
from tandem.observe.plot import draw_run, running_mean
from tandem.observe.report import PLOT_FILE, duration, thin_out, write_report


def steps(count):
    return [
        {
            "step": step,
            "rollout/raw_reward": step / count,
            "rollout/response_len/mean": 100.0 + step,
            "rollout/num_tokens": 1000,
            "rollout/num_samples": 8,
            "perf/rollout_time": 6.0,
            "perf/actor_train_time": 2.0,
            "perf/step_time": 10.0,
        }
        for step in range(count)
    ]


@pytest.fixture
def run_dir(tmp_path):
    rows = steps(40)
    for step, score in ((0, 0.1), (20, 0.7), (39, 0.6)):
        rows[step] |= {
            "eval/sort": score,
            "eval/sort-pass@1": score,
            "eval/sort-pass@2": score + 0.1,
            "perf/eval_time": 10.0,
        }
    append_lines(tmp_path / "metrics.jsonl", rows)
    write_json(tmp_path / "config.json", {"data": {"rollout_batch_size": 32}})
    return tmp_path


def test_report_names_first_last_and_best(run_dir):
    text = write_report(run_dir).read_text()
    assert "- reward in training: 0.000 at first, 0.975 at last, best 0.975 at step 39" in text
    assert (
        "| sort | 0.100 (step 0) | 0.600 (step 39) | 0.700 (step 20) | 1: 0.600, 2: 0.700 |" in text
    )
    assert "- sampled: 320 answers, 40,000 tokens" in text
    assert "- `--rollout-batch-size`: `32`" in text


def test_times_of_the_report_add_up(run_dir):
    text = write_report(run_dir).read_text()
    assert "| sampling and judging | 4 min 00 s | 55.8% |" in text
    assert "| training | 1 min 20 s | 18.6% |" in text
    assert "| evaluation | 30.0 s | 7.0% |" in text
    assert "| everything else | 1 min 20 s | 18.6% |" in text


def test_plot_is_a_picture_that_the_report_shows(run_dir):
    text = write_report(run_dir, draw=draw_run).read_text()
    assert (run_dir / PLOT_FILE).read_bytes().startswith(b"\x89PNG")
    assert f"]({PLOT_FILE})" in text


def test_without_matplotlib_the_report_says_how_to_get_the_plot(run_dir):
    text = write_report(run_dir, has_plotter=False).read_text()
    assert "pip install 'tandem-rl[plot]'" in text
    assert not (run_dir / PLOT_FILE).exists()


def test_report_of_an_empty_folder_says_so(tmp_path):
    assert "Nothing was measured yet." in write_report(tmp_path).read_text()


def test_report_of_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no run folder"):
        write_report(str(tmp_path / "nowhere"))


def test_thinned_rows_keep_both_ends():
    rows = steps(101)
    shown = [row["step"] for row in thin_out(rows, 5)]
    assert shown == [0, 25, 50, 75, 100]
    assert thin_out(rows[:3], 5) == rows[:3]


def test_running_mean_looks_back_over_its_window():
    assert running_mean([2.0, 4.0, 6.0, 8.0], 2) == [2.0, 3.0, 5.0, 7.0]


def test_durations_read_well():
    assert [duration(one) for one in (3.21, 65, 3600 * 3 + 720)] == [
        "3.2 s",
        "1 min 05 s",
        "3 h 12 min",
    ]
