"""The known names that look like an unknown one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean A or B?` for the names that look like it, else nothing."""
    found = get_close_matches(name, list(known), n=2, cutoff=0.72)
    return f"; did you mean {' or '.join(found)}?" if found else ""
