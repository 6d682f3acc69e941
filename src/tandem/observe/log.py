"""The one place that sets logging up: a rich handler on a terminal, plain lines elsewhere."""

import logging
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

ROOT = "tandem"
PLAIN_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
CLOCK_FORMAT = "%H:%M:%S"


def get_logger(room: str) -> logging.Logger:
    """The logger of a room (`get_logger("rollout")` is `tandem.rollout`)."""
    return logging.getLogger(f"{ROOT}.{room}")


def set_up_logging(
    *, level: int | str = logging.INFO, stream: TextIO | None = None, is_live: bool | None = None
) -> logging.Logger:
    """Tandem's logger, with exactly one handler that writes to `stream` (standard error).

    `is_live` chooses the rich handler; by default it is taken where the stream is a terminal.
    Calling it again replaces the handler. Other libraries' loggers are left as they are.
    """
    stream = sys.stderr if stream is None else stream
    logger = logging.getLogger(ROOT)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if stream.isatty() if is_live is None else is_live:
        logger.addHandler(_rich_handler(stream))
    else:
        plain = logging.StreamHandler(stream)
        plain.setFormatter(logging.Formatter(PLAIN_FORMAT, CLOCK_FORMAT))
        logger.addHandler(plain)
    logger.setLevel(level)
    logger.propagate = False
    return logger


def log_console() -> "Console | None":
    """The console that log lines go through, so that a live table can share it; None if plain."""
    for handler in logging.getLogger(ROOT).handlers:
        console = getattr(handler, "console", None)
        if console is not None:
            return console
    return None


def _rich_handler(stream: TextIO) -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(
        console=Console(file=stream),
        show_path=False,
        log_time_format=f"[{CLOCK_FORMAT}]",
        rich_tracebacks=False,
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
