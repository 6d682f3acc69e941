"""Ranks: which part of the work is whose."""

from tandem.parallel.mesh import ALONE, Axis, Layout, Mesh, Sizes, make_mesh, row_multiple, sizes_of

__all__ = ["ALONE", "Axis", "Layout", "Mesh", "Sizes", "make_mesh", "row_multiple", "sizes_of"]
