"""Filters: which judged groups are trained on."""

from tandem.filters.groups import find_shipped

__all__ = ["find_shipped"]
