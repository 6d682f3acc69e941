"""Clocks and numbers out: the log, metrics, timers, and the files and screens they go to."""

from tandem.observe.journal import METRICS_FILE, SAMPLES_FILE, read_rows
from tandem.observe.log import get_logger, say_once, set_up_logging
from tandem.observe.metrics import (
    evaluation_metrics,
    pass_at_k,
    reward_warning,
    rollout_metrics,
    speed_metrics,
    training_metrics,
)
from tandem.observe.report import write_report
from tandem.observe.run import RunLog
from tandem.observe.timers import Span, Timers, elapsed, seconds_by_name

__all__ = [
    "METRICS_FILE",
    "SAMPLES_FILE",
    "RunLog",
    "Span",
    "Timers",
    "elapsed",
    "evaluation_metrics",
    "get_logger",
    "pass_at_k",
    "read_rows",
    "reward_warning",
    "rollout_metrics",
    "say_once",
    "seconds_by_name",
    "set_up_logging",
    "speed_metrics",
    "training_metrics",
    "write_report",
]
