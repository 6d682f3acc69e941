"""Starts a run where its flags want it."""

from contextlib import ExitStack

from tandem.config import Config, check_files
from tandem.loop import train
from tandem.observe import get_logger, set_up_logging
from tandem.rollout import EventLoop
from tandem.runtime import local
from tandem.runtime.signals import stop_on_signals


def run(cfg: Config) -> None:
    """Builds the stages and drives them to the last rollout.

    Raises a TandemError for what the user can mend, Stopped when asked to end.
    """
    set_up_logging()
    check_files(cfg)
    with ExitStack() as stack:
        events = EventLoop()
        stack.callback(events.close)
        stack.enter_context(stop_on_signals(events.stop, get_logger("run").warning))
        stages, cfg = local.build(cfg, events, stack)
        train(cfg, stages)
