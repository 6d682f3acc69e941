"""Advantages, ratios, KL and losses as pure functions, each with its formula's source."""

from tandem.algo.advantage import advantage
from tandem.algo.estimators import ESTIMATORS
from tandem.algo.hooks import NO_HOOKS, Hooks, hooked_loss
from tandem.algo.kl import KL_TYPES, kl_estimate
from tandem.algo.mismatch import Tokens, normaliser
from tandem.algo.objective import (
    loss,
    value_loss,
    wanted_columns,
    wants_entropy,
    wants_reference,
    wants_teacher,
)
from tandem.algo.policy_loss import PolicyLoss, policy_loss

__all__ = [
    "ESTIMATORS",
    "KL_TYPES",
    "NO_HOOKS",
    "Hooks",
    "PolicyLoss",
    "Tokens",
    "advantage",
    "hooked_loss",
    "kl_estimate",
    "loss",
    "normaliser",
    "policy_loss",
    "value_loss",
    "wanted_columns",
    "wants_entropy",
    "wants_reference",
    "wants_teacher",
]
