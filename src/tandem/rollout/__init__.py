"""Prompts to judged groups: the rollout stage, evaluation, and supervised data in their place."""

from tandem.rollout.collect import Choice, RolloutStage
from tandem.rollout.door import Door
from tandem.rollout.evaluate import EvaluationSet, SetEvaluator
from tandem.rollout.events import EventLoop
from tandem.rollout.groups import Generator, GroupSampler
from tandem.rollout.leftovers import decode, encode
from tandem.rollout.settings import Terms
from tandem.rollout.supply import LEFTOVERS, Supply
from tandem.rollout.unsampled import ReplayedStage, SupervisedStage

__all__ = [
    "LEFTOVERS",
    "Choice",
    "Door",
    "EvaluationSet",
    "EventLoop",
    "Generator",
    "GroupSampler",
    "ReplayedStage",
    "RolloutStage",
    "SetEvaluator",
    "SupervisedStage",
    "Supply",
    "Terms",
    "decode",
    "encode",
]
