"""Starts a run where its flags want it."""

from collections.abc import Callable
from contextlib import ExitStack

from tandem.config import Config, check_files
from tandem.errors import ConfigError
from tandem.loop import Stages, train
from tandem.observe import get_logger, set_up_logging
from tandem.observe.split import split_text
from tandem.rollout import EventLoop
from tandem.runtime import local
from tandem.runtime.overlap import event_loop
from tandem.runtime.signals import stop_on_signals

Build = Callable[[Config, EventLoop, ExitStack], tuple[Stages, Config]]


def run(cfg: Config) -> None:
    """Builds the stages and drives them to the last rollout.

    Raises a TandemError for what the user can mend, Stopped when asked to end.
    """
    set_up_logging()
    check_files(cfg)
    with ExitStack() as stack:
        events = event_loop(cfg)
        stack.callback(events.close)
        stack.enter_context(stop_on_signals(events.stop, get_logger("run").warning))
        stages, cfg = builder_of(cfg)(cfg, events, stack)
        train(cfg, stages)
        if cfg.sync.auto_split and stages.start < stages.num_rollout:
            assert cfg.observe.run_dir is not None, "resolve names a run folder"
            stages.log.note(split_text(cfg.observe.run_dir))


def builder_of(cfg: Config) -> Build:
    """What builds the stages of this run; raises ConfigError where Ray is wanted and not there."""
    if cfg.cluster.runtime != "ray":
        return local.build
    try:
        from tandem.runtime.ray.build import build
    except ImportError as error:
        raise ConfigError(
            f"these flags ask for several processes, which takes Ray, and it cannot be imported "
            f"({error}); pip install 'tandem-rl[ray]', or ask for one device"
        ) from error
    return build
