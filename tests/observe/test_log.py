import io
import logging

import pytest

from tandem.observe.log import get_logger, log_console, set_up_logging


@pytest.fixture
def stream():
    """What Tandem's logger writes to during a test; the logger is put back afterwards."""
    logger = logging.getLogger("tandem")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield io.StringIO()
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


def test_plain_lines_name_the_room(stream):
    set_up_logging(stream=stream)
    get_logger("rollout").info("hello")
    assert stream.getvalue().endswith(" I tandem.rollout: hello\n")
    assert log_console() is None


def test_setting_up_twice_does_not_double_the_lines(stream):
    set_up_logging(stream=stream)
    set_up_logging(stream=stream)
    get_logger("run").info("hello")
    assert stream.getvalue().count("hello") == 1


def test_live_log_lines_go_through_a_console_that_others_can_share(stream):
    set_up_logging(stream=stream, is_live=True)
    get_logger("run").info("hello")
    console = log_console()
    assert console is not None
    assert console.file is stream
    assert "hello" in stream.getvalue()
