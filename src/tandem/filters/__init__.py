"""Filters: which judged groups are trained on."""

from tandem.filters.groups import (
    SHIPPED,
    GroupFilter,
    check_reward_nonzero_std,
    find_shipped,
)

__all__ = ["SHIPPED", "GroupFilter", "check_reward_nonzero_std", "find_shipped"]
