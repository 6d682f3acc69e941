import io
import logging

import pytest
from rich.console import Console

from tandem.observe.table import (
    NUM_SHOWN_STEPS,
    LiveDisplay,
    PlainDisplay,
    eval_sets,
    open_display,
    short,
    step_line,
)

ROW = {
    "step": 3,
    "rollout/raw_reward": 0.4125,
    "eval/step": 3,
    "eval/aime": 0.25,
    "eval/aime-pass@1": 0.25,
    "eval/aime-truncated_ratio": 0.5,
    "eval/aime/response_len/mean": 900.0,
    "eval/aime-missing_verdicts": 0.0,
    "rollout/response_len/mean": 1024.0,
    "rollout/truncated_ratio": 0.03,
    "train/loss": None,
    "perf/step_time": 21.25,
}


class FakeClock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def lines():
    """A logger and the list of the messages that it was given."""
    said = []
    logger = logging.Logger("display")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    return logger, said


def test_step_line_shows_what_the_step_has_and_nothing_else():
    assert step_line(ROW, 10) == (
        "step 3/10 | reward 0.412 | eval aime 0.250 | len 1.0k | cut 3% | loss nan | total 21.2s"
    )
    assert step_line({"step": 0}, 10) == "step 0/10"
    assert step_line({"step": 7}, 0) == "step 7"  # an evaluation alone


def test_evaluated_sets_are_told_from_numbers_about_them():
    assert eval_sets(ROW) == {"aime": 0.25}
    assert eval_sets({"step": 0, "rollout/raw_reward": 1.0}) == {}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.000"),
        (0.41, "0.410"),
        (-2.5e-5, "-2.5e-05"),
        (12.34, "12.3"),
        (9216, "9.2k"),
        (3.1e6, "3.1M"),
        (2e9, "2.0G"),
    ],
)
def test_numbers_are_short(number, text):
    assert short(number) == text


def test_without_a_terminal_a_step_is_one_line(lines):
    logger, said = lines
    PlainDisplay(10, logger=logger).step(ROW)
    assert said == [step_line(ROW, 10)]


def test_without_a_terminal_long_work_is_mentioned_now_and_then(lines):
    logger, said = lines
    clock = FakeClock()
    display = PlainDisplay(10, logger=logger, clock=clock)
    for done in range(1, 101):
        clock.now_s += 1.0
        display.progress("sampling", done, 100)
    assert said == ["sampling 30 of 100", "sampling 60 of 100", "sampling 90 of 100"]


def test_live_table_shows_bars_and_the_last_steps():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=140)
    display = LiveDisplay(100, console)
    display.progress("sampling", 5, 8)
    for step in range(NUM_SHOWN_STEPS + 3):
        display.step({**ROW, "step": step})
    console.print(display.picture())
    text = stream.getvalue()
    display.close()
    assert "5/8" in text
    assert f"{NUM_SHOWN_STEPS + 2}/100" in text
    assert "2/100" not in text.split()
    assert "0.412" in text


def test_progress_that_falls_begins_a_new_round():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    display = LiveDisplay(100, console)
    for done in (4, 8, 1):
        display.progress("sampling", done, 8)
    with console.capture() as shown:
        console.print(display.picture())
    display.close()
    assert "1/8" in shown.get()


def test_display_is_plain_unless_log_lines_go_to_a_terminal():
    assert isinstance(open_display("auto", 1), PlainDisplay)
    assert isinstance(open_display("plain", 1), PlainDisplay)


def test_a_display_that_is_off_says_nothing(caplog, capsys):
    display = open_display("off", 1)
    display.step(ROW)
    display.progress("sampling", 1, 2)
    assert not caplog.records and capsys.readouterr() == ("", "")
