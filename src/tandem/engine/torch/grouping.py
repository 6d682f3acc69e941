"""Which rows of a decode step begin with the same cached blocks."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Grouping:
    """G runs of neighbouring rows, `bounds_G` of them, that share their first `shared_G` blocks."""

    bounds_G: np.ndarray  # int32, G + 1
    shared_G: np.ndarray  # int32; 0 for a row on its own

    @property
    def is_shared(self) -> bool:
        return bool(self.shared_G.any())

    @property
    def shared_R(self) -> np.ndarray:
        """Each row's count of shared blocks."""
        return np.repeat(self.shared_G, np.diff(self.bounds_G))


def find_groups(table_RB: np.ndarray, full_R: np.ndarray, rank_R: np.ndarray) -> Grouping:
    """The grouping of rows that are sorted by `rank_R`; rows of one rank are related.

    `full_R` counts the full blocks of each row, the only ones that can be shared. A run takes in
    each next row that shares at least a block with the one before it, and shares what all do.
    """
    num_rows, width = len(table_RB), int(full_R.max(initial=0))
    is_same = table_RB[1:, :width] == table_RB[:-1, :width]
    is_same &= np.arange(width) < np.minimum(full_R[1:], full_R[:-1])[:, None]
    is_same &= (rank_R[1:] == rank_R[:-1])[:, None]
    lead = np.cumprod(is_same, axis=1, dtype=np.int32).sum(axis=1, dtype=np.int32)
    starts = np.concatenate([[0], np.flatnonzero(lead == 0) + 1]).astype(np.int32)
    bounds_G = np.append(starts, np.int32(num_rows))
    # a row's lead is with the row before it, so the first row of a run has none
    everything = np.iinfo(np.int32).max
    lead_R = np.concatenate([[everything], lead]).astype(np.int32)
    lead_R[starts] = everything
    shared_G = np.minimum.reduceat(lead_R, starts)
    return Grouping(bounds_G, np.where(np.diff(bounds_G) == 1, 0, shared_G).astype(np.int32))


def end_together(groups: Grouping, unit: int) -> Grouping:
    """The grouping with every count of shared blocks cut to a multiple of `unit`."""
    return replace(groups, shared_G=groups.shared_G // np.int32(unit) * np.int32(unit))


def suffixes(table_RB: np.ndarray, shared_R: np.ndarray) -> np.ndarray:
    """The table without each row's shared blocks; what lies past a row's end names some block."""
    columns_RB = shared_R[:, None] + np.arange(table_RB.shape[1])
    return np.take_along_axis(table_RB, np.minimum(columns_RB, table_RB.shape[1] - 1), axis=1)
