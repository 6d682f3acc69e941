"""From the words of a command line to a Config that works, or one error that says everything."""

import re
from collections.abc import Sequence
from dataclasses import replace

from tandem.config.config import Config
from tandem.config.engines import is_sglang_here
from tandem.config.fields import flag_of
from tandem.config.given import Given, grouped
from tandem.config.no_effect import without_effect
from tandem.config.parse import parse
from tandem.config.resolve import resolve
from tandem.config.rules import check
from tandem.errors import ConfigError


def load_config(argv: Sequence[str]) -> Config:
    """The settings of a run; raises ConfigError with every failure found."""
    cfg, failures = read_config(argv)
    if failures:
        raise ConfigError(failures)
    return cfg


def read_config(argv: Sequence[str]) -> tuple[Config, tuple[str, ...]]:
    """The settings as far as they can be read, and everything that is wrong with them."""
    given = parse(argv)
    cfg, failures = resolve(given, has_sglang=is_sglang_here())
    notes = given.without_effect | without_effect(cfg)
    cfg = replace(cfg, notes=grouped(notes, "no effect, because "))
    ruled = [line for line in (*failures, *check(cfg)) if not _follows(given, line)]
    return cfg, (*given.failures, *grouped(given.refused), *ruled)


def _follows(given: Given, failure: str) -> bool:
    """Whether a failure is about a flag whose value could not even be read."""
    return any(re.search(f"{flag_of(name)}(?![-a-z])", failure) for name in given.broken)
