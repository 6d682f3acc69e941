"""Prompts to judged groups: the rollout stage, evaluation, and supervised data in their place."""

from tandem.rollout.collect import GroupSampler, RolloutStage
from tandem.rollout.evaluate import EvaluationSet, Evaluator
from tandem.rollout.events import EventLoop
from tandem.rollout.settings import training_sampling
from tandem.rollout.supervised import SupervisedStage

__all__ = [
    "EvaluationSet",
    "Evaluator",
    "EventLoop",
    "GroupSampler",
    "RolloutStage",
    "SupervisedStage",
    "training_sampling",
]
