"""Sampling ahead of training: one rollout ahead, or without end.

Both are samplers that the loop drives like any other; what differs is when they sample.
"""

from tandem.loop_async.ahead import AHEAD, Ahead
from tandem.loop_async.background import BackgroundRunner
from tandem.loop_async.stream import Stream

__all__ = ["AHEAD", "Ahead", "BackgroundRunner", "Stream"]
