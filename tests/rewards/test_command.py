"""`tandem grade`: one line out for every line in, whatever comes."""

import io
import json
import queue
import threading

import pytest

from tandem.errors import ConfigError
from tandem.rewards.command import run_grade


def graded(rm_type, *lines, **settings):
    out = io.StringIO()
    run_grade(rm_type, lines, out, **settings)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def line(response, label=None, **more):
    return json.dumps({"response": response, "label": label, **more}) + "\n"


def test_rewards_come_in_the_order_of_the_lines():
    said = graded(
        "math",
        line(r"\boxed{x+1}", "1+x"),  # takes a worker
        line(r"\boxed{5}", "5"),
        line(r"\boxed{x+2}", "1+x"),
        line(r"\boxed{6}", "5"),
    )
    assert said == [{"reward": 1}, {"reward": 1}, {"reward": 0}, {"reward": 0}]


def test_dictionaries_are_printed_whole():
    assert graded("dapo", line("Answer: 5", "5")) == [
        {"reward": {"score": 1.0, "acc": True, "pred": "5"}}
    ]


def test_whatever_cannot_be_judged_is_an_error_line():
    said = graded(
        "dapo",
        "not json\n",
        "\n",
        "[1]\n",
        '{"label": "5"}\n',
        line(5, "5"),
        line("Answer: 5", "five"),
        line("Answer: 5", "5", metadata=[1]),
        line("Answer: 5", "5", metadata={"rm_type": "nothing"}),
        line("Answer: 5", "5", metadata={"rm_type": "remote_rm"}),
        line(None, "5"),
        "[" * 100_000,
        b'{"response": "\xff"}\n',
        line("Answer: 5", "5"),
    )
    assert [list(one) for one in said] == [["error"]] * 11 + [["reward"]]


def test_metadata_reaches_the_grader_and_may_name_another_reward():
    said = graded(
        "gpqa",
        line("The answer is: B", "iron", metadata={"choices": ["water", "iron"]}),
        line(r"\boxed{5}", 5, metadata={"rm_type": "math"}),
    )
    assert said == [{"reward": 1.0}, {"reward": 1}]


def test_surrogates_and_null_bytes_come_through():
    assert graded("f1", '{"response": "\\ud800 a\\u0000", "label": "\\ud800 \\u0000"}\n') == [
        {"reward": 1.0}
    ]


def test_a_late_verdict_is_an_error_line():
    slow = r"\boxed{\binom{10000000}{5000000}}"
    said = graded("math_verify", line(slow, "3"), line(r"\boxed{3}", "3"), limit_s=0.5)
    assert "no verdict within 0.5 s" in said[0]["error"]
    assert said[1] == {"reward": 1.0}


def test_a_name_that_no_reward_has_is_refused_before_the_first_line():
    for name in ("maths", "ifbench", "remote_rm"):
        with pytest.raises(ConfigError):
            graded(name, line("5", "5"))


def test_each_line_is_answered_before_the_next_one_comes():
    lines, answers = queue.Queue(), queue.Queue()

    class Out:
        def write(self, text):
            answers.put(text)

        def flush(self):
            pass

    worker = threading.Thread(target=run_grade, args=("math", iter(lines.get, None), Out()))
    worker.start()
    for label in ("5", "6"):
        lines.put(line(r"\boxed{5}", label))
        assert json.loads(answers.get(timeout=60)) == {"reward": int(label == "5")}
    lines.put(None)
    worker.join()


def test_nobody_reading_any_more_is_no_fault():
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

    run_grade("math", [line(r"\boxed{5}", "5")] * 600, Closed())
