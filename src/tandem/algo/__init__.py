"""Advantages, ratios, KL and losses as pure functions, each with its formula's source."""

from tandem.algo.advantage import advantage
from tandem.algo.hooks import NO_HOOKS, Hooks, hooked_loss
from tandem.algo.mismatch import Tokens, normaliser
from tandem.algo.objective import (
    loss,
    value_loss,
    wanted_columns,
    wants_entropy,
    wants_reference,
    wants_teacher,
)

__all__ = [
    "NO_HOOKS",
    "Hooks",
    "Tokens",
    "advantage",
    "hooked_loss",
    "loss",
    "normaliser",
    "value_loss",
    "wanted_columns",
    "wants_entropy",
    "wants_reference",
    "wants_teacher",
]
