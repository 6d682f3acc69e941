"""Samples to packed rows: the schedule of a step, the shift by one token, the loss weights."""

from tandem.packing.pack import ScoringRow, columns, num_steps, pack, scoring_rows
from tandem.packing.plan import plan

__all__ = ["ScoringRow", "columns", "num_steps", "pack", "plan", "scoring_rows"]
