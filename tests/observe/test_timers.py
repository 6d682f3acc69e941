import json

import pytest

from tandem.observe.timers import Span, Timers, append_trace, elapsed, seconds_by_name


class FakeClock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def test_spans_of_one_name_are_summed():
    clock = FakeClock()
    timers = Timers(clock)
    for seconds in (1.0, 2.0):
        with timers.span("pack"):
            clock.now_s += seconds
    with timers.span("train"):
        clock.now_s += 4.0
    assert seconds_by_name(timers.take()) == {"pack": 3.0, "train": 4.0}


def test_taken_spans_are_not_taken_again():
    timers = Timers()
    with timers.span("pack"):
        pass
    assert [span.name for span in timers.take()] == ["pack"]
    assert timers.take() == ()


def test_a_span_that_raises_is_measured_too():
    clock = FakeClock()
    timers = Timers(clock)
    with pytest.raises(ValueError), timers.span("rollout"):
        clock.now_s += 2.5
        raise ValueError
    assert seconds_by_name(timers.take()) == {"rollout": 2.5}


def test_inner_spans_know_their_depth():
    timers = Timers()
    with timers.span("outer"), timers.span("inner"):
        pass
    with timers.span("next"):
        pass
    assert [(span.name, span.depth) for span in timers.take()] == [
        ("inner", 1),
        ("outer", 0),
        ("next", 0),
    ]


def test_elapsed_goes_from_the_first_beginning_to_the_last_end():
    spans = [
        Span(name="a", begin_s=10.0, seconds=1.0),
        Span(name="b", begin_s=12.0, seconds=3.0),
        Span(name="c", begin_s=12.5, seconds=0.5),
    ]
    assert elapsed(spans) == 5.0
    assert elapsed([]) == 0.0


def test_trace_is_an_array_of_complete_events_that_may_be_added_to(tmp_path):
    path = tmp_path / "trace.json"
    for step in (0, 1):
        append_trace(path, [Span(name="train", begin_s=5.0 + step, seconds=0.25)], {"step": step})
    # the format lets a file end without the bracket; a strict parser gets it added
    events = json.loads(path.read_text().rstrip().rstrip(",") + "]")
    assert [event["ts"] for event in events] == [5_000_000, 6_000_000]
    assert {(event["name"], event["ph"], event["dur"]) for event in events} == {
        ("train", "X", 250_000)
    }
    assert [event["args"] for event in events] == [{"step": 0}, {"step": 1}]
