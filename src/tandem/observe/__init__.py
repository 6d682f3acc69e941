"""Clocks and numbers out: the log, metrics, timers, and the files and screens they go to."""

from tandem.observe.log import get_logger, set_up_logging
from tandem.observe.metrics import evaluation_metrics
from tandem.observe.run import RunLog
from tandem.observe.timers import Timers

__all__ = ["RunLog", "Timers", "evaluation_metrics", "get_logger", "set_up_logging"]
