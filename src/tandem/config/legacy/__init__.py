"""Old spellings, slime's and Megatron's: mapped, checked, without effect, or refused."""

from collections.abc import Mapping
from functools import cache

from tandem.config import not_yet
from tandem.config.legacy import megatron, slime
from tandem.config.legacy.fates import Expected, Fate, Mapped, NoEffect, OldFlag, Refused
from tandem.config.legacy.shapes import check_expectations, mismatches, shape_flags

__all__ = [
    "Expected",
    "Fate",
    "Mapped",
    "NoEffect",
    "OldFlag",
    "Refused",
    "check_expectations",
    "mismatches",
    "old_flags",
]


@cache
def old_flags() -> Mapping[str, OldFlag]:
    """Every old spelling by flag."""
    coming = tuple(
        OldFlag(flag, takes, Refused(not_yet.said(what)))
        for what, takes, flags in not_yet.OLD_FLAGS
        for flag in flags.split()
    )
    table: dict[str, OldFlag] = {}
    for row in (*shape_flags(), *megatron.FLAGS, *slime.FLAGS, *coming):
        assert row.flag not in table, f"two fates for {row.flag}"
        table[row.flag] = row
    return table
