"""Advantages, ratios, KL and losses as pure functions, each with its formula's source."""

from tandem.algo.advantage import advantage
from tandem.algo.estimators import ESTIMATORS
from tandem.algo.kl import KL_TYPES, kl_estimate
from tandem.algo.objective import (
    loss,
    wanted_columns,
    wants_entropy,
    wants_reference,
)
from tandem.algo.policy_loss import PolicyLoss, policy_loss

__all__ = [
    "ESTIMATORS",
    "KL_TYPES",
    "PolicyLoss",
    "advantage",
    "kl_estimate",
    "loss",
    "policy_loss",
    "wanted_columns",
    "wants_entropy",
    "wants_reference",
]
