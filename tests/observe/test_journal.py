import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.observe.journal import (
    MetricsJournal,
    append_lines,
    drop_torn_line,
    plain,
    read_rows,
    resume_lines,
    resume_metrics,
    set_aside,
    to_json,
)


def write_steps(path, *rows):
    journal = MetricsJournal(path)
    for row in rows:
        journal.write({name: value for name, value in row.items() if name != "step"}, **step(row))
    journal.close()


def step(row):
    return {"step": row["step"]}


def test_each_step_has_one_line_that_holds_all_that_was_said_about_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, {"step": 0, "a": 1}, {"step": 0, "b": 2}, {"step": 1, "a": 3})
    assert read_rows(path) == [{"step": 0, "a": 1, "b": 2}, {"step": 1, "a": 3}]


def test_a_row_is_on_disk_before_the_next_call(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = MetricsJournal(path)
    journal.write({"a": 1}, step=0)
    assert read_rows(path) == [{"step": 0, "a": 1}]
    journal.write({"b": 2}, step=0)
    assert read_rows(path) == [{"step": 0, "a": 1, "b": 2}]
    journal.close()


def test_the_last_line_may_be_opened_again_after_the_file_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, {"step": 0, "a": 1}, {"step": 1, "a": 2})
    write_steps(path, {"step": 1, "b": 3}, {"step": 2, "a": 4})
    assert read_rows(path) == [
        {"step": 0, "a": 1},
        {"step": 1, "a": 2, "b": 3},
        {"step": 2, "a": 4},
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=1),  # how much later the step is
            st.dictionaries(
                st.sampled_from("abc"), st.text("a\n\u00e9", max_size=30) | st.floats(), max_size=3
            ),
        ),
        max_size=12,
    )
)
def test_the_file_never_shrinks_and_always_holds_whole_lines(tmp_path_factory, writes):
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    journal = MetricsJournal(path)
    expected: dict[int, dict] = {}
    number, size = 0, 0
    for gap, row in writes:
        number += gap
        journal.write(row, step=number)
        expected[number] = {**expected.get(number, {}), "step": number, **plain(row)}
        content = path.read_bytes()
        assert content.endswith(b"\n")
        assert len(content) >= size
        assert [json.loads(line) for line in content.splitlines()] == list(expected.values())
        size = len(content)
    journal.close()


def test_torn_last_line_is_dropped_when_the_file_is_opened(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, {"step": 0, "a": 1})
    with path.open("a") as file:
        file.write('{"step": 1, "a"')
    assert read_rows(path) == [{"step": 0, "a": 1}]
    write_steps(path, {"step": 1, "a": 2})
    assert [row["step"] for row in read_rows(path)] == [0, 1]


def test_drop_torn_line_empties_a_file_without_any_line_end(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text('{"name": ')
    drop_torn_line(path)
    assert path.read_text() == ""


def test_resume_forgets_later_steps_and_keeps_the_evaluation_of_the_saved_weights(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(
        path,
        {"step": 0, "rollout/raw_reward": 0.1},
        {"step": 1, "eval/aime": 0.5, "rollout/raw_reward": 0.2},
        {"step": 2, "rollout/raw_reward": 0.3},
    )
    resume_metrics(path, 1)
    assert read_rows(path) == [
        {"step": 0, "rollout/raw_reward": 0.1},
        {"step": 1, "eval/aime": 0.5},
    ]


def test_resume_drops_the_row_of_the_next_step_when_it_has_no_evaluation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, {"step": 0, "a": 1}, {"step": 1, "a": 2})
    resume_metrics(path, 1)
    assert read_rows(path) == [{"step": 0, "a": 1}]


def test_resume_of_sample_lines_drops_those_of_later_steps(tmp_path):
    path = tmp_path / "samples.jsonl"
    append_lines(path, [{"step": number, "response": "x"} for number in (0, 0, 1, 2)])
    resume_lines(path, 1)
    assert [row["step"] for row in read_rows(path)] == [0, 0]


def test_files_of_an_earlier_run_are_moved_aside_not_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert set_aside(path) is None
    for number in (1, 2):
        path.write_text(f"{number}\n")
        moved = set_aside(path)
        assert moved == tmp_path / f"metrics.{number}.jsonl"
        assert moved.read_text() == f"{number}\n"
    assert not path.exists()


def test_numbers_that_are_not_finite_become_null():
    row = {"a": float("nan"), "b": np.float32("inf"), "c": np.float32(0.5), "d": np.int64(3)}
    assert json.loads(to_json(row)) == {"a": None, "b": None, "c": 0.5, "d": 3}
