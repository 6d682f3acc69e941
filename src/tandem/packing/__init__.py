"""Samples to packed rows: the schedule of a step, the shift by one token, the loss weights."""

from tandem.packing.pack import ScoringRow, columns, num_steps, pack, scoring_rows
from tandem.packing.plan import Layout, Step, plan, split_steps

__all__ = [
    "Layout",
    "ScoringRow",
    "Step",
    "columns",
    "num_steps",
    "pack",
    "plan",
    "scoring_rows",
    "split_steps",
]
