"""`tandem samples` shows the samples that were asked for, and nothing that harms a terminal."""

import io
import json

import pytest

from tandem.cli.main import main
from tandem.cli.samples import describe, filter_of, parser, readable, samples_command, steps_of
from tandem.errors import ConfigError, DataError


def row_of(step, reward, **rest):
    row = {
        "step": step,
        "set": None,
        "index": step * 10,
        "prompt": f"question {step}",
        "response": f"answer {step}\nand more",
        "label": "42",
        "reward": reward,
        "verdict": None,
        "ending": "stop",
        "response_tokens": 9,
        "sampled_tokens": 7,
        "versions": [step],
    }
    return row | rest


ROWS = [
    row_of(0, 1.0),
    row_of(1, 0.0, ending="length"),
    row_of(2, None, verdict={"score": None, "why": "timed out"}),
    row_of(2, 0.5, set="heldout"),
]


@pytest.fixture
def run(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "samples.jsonl").write_text(lines + '{"step": 3, "torn')
    return tmp_path


def shown(run, *words):
    out = io.StringIO()
    assert samples_command([str(run), *words], out) == 0
    return out.getvalue()


def steps_in(text):
    return [int(line.split()[2].rstrip(",")) for line in text.splitlines() if line.startswith("==")]


def test_all_samples_are_shown_with_everything_that_was_said_of_them(run):
    text = shown(run)
    assert steps_in(text) == [0, 1, 2, 2]
    for word in ("question 0", "and more", "reward   1", "timed out", "missing", "version 2"):
        assert word in text
    assert text.endswith("4 of 4 samples\n")


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--step", "1"], [1]),
        (["--step", "1:"], [1, 2, 2]),
        (["--step", ":1"], [0, 1]),
        (["--step", "1:2", "--set", "train"], [1, 2]),
        (["--min-reward", "0.5"], [0, 2]),
        (["--max-reward", "0.5"], [1, 2]),
        (["--set", "heldout"], [2]),
        (["--ending", "length"], [1]),
        (["--grep", "answer [01]"], [0, 1]),
        (["--missing"], [2]),
        (["--last", "1"], [2]),
        (["--step", "9"], []),
    ],
)
def test_filters_leave_what_was_asked_for(run, words, steps):
    assert steps_in(shown(run, *words)) == steps


def test_json_lines_are_the_rows_as_they_are(run):
    lines = shown(run, "--json", "--set", "heldout").splitlines()
    assert [json.loads(line) for line in lines] == [ROWS[3]]


def test_a_file_of_samples_stands_for_its_folder(run):
    assert shown(run / "samples.jsonl") == shown(run)


def test_what_a_model_wrote_cannot_steer_the_terminal():
    assert readable("a\x1b[2Jb\rc\nd") == "a\\x1b[2Jb\\rc\nd"
    text = describe(row_of(0, 1.0, response="\x1b]0;title\x07", verdict={"x": "\x9b31m"}), 80)
    assert all(letter == "\n" or letter.isprintable() for letter in text)


def test_long_lines_are_wrapped_and_line_breaks_kept():
    text = describe(row_of(0, 1.0, response="word " * 50 + "\n\nend"), 60)
    assert max(map(len, text.splitlines())) <= 60
    assert "\n\n         end\n" in text


def test_a_sample_without_a_reward_is_within_no_bounds():
    unjudged = row_of(0, None)
    assert not filter_of(parser().parse_args(["run", "--max-reward", "5"]))(unjudged)
    assert filter_of(parser().parse_args(["run"]))(unjudged)


@pytest.mark.parametrize("text", ["x", "", "1:x"])
def test_a_step_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--step"):
        steps_of(text)


def test_a_folder_without_samples_says_what_is_wanted(tmp_path):
    with pytest.raises(DataError, match=r"samples\.jsonl"):
        samples_command([str(tmp_path)])


def test_a_line_that_is_no_sample_is_named(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n[1]\n')
    with pytest.raises(DataError, match=":2"):
        samples_command([str(tmp_path)])


def test_the_command_is_there_and_reports_faults_plainly(run, capsys):
    assert main(["samples", str(run), "--missing"]) == 0
    assert "timed out" in capsys.readouterr().out
    assert main(["samples", str(run), "--grep", "("]) == 2
    assert "--grep" in capsys.readouterr().err
