"""Ranks: which part of the work is whose."""

from tandem.parallel.mesh import Layout

__all__ = ["Layout"]
