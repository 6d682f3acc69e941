"""The training stage: optimizer, schedule, and the trainer that owns the weights."""

from tandem.train.build import build_parts, build_trainer, layout_of
from tandem.train.canary import canary, canary_tokens
from tandem.train.invariants import broken_invariants
from tandem.train.learning import Beside, Learning
from tandem.train.optimizer import AdamW
from tandem.train.schedule import Schedule, schedule_of
from tandem.train.trainer import LocalTrainer

__all__ = [
    "AdamW",
    "Beside",
    "Learning",
    "LocalTrainer",
    "Schedule",
    "broken_invariants",
    "build_parts",
    "build_trainer",
    "canary",
    "canary_tokens",
    "layout_of",
    "schedule_of",
]
