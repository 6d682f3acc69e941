"""Rows that share blocks are found, and nothing that is not shared is taken for it."""

import numpy as np

from tandem.engine.torch.grouping import end_together, find_groups, suffixes


def groups_of(table, full, ranks):
    found = find_groups(np.array(table, np.int32), np.array(full), np.array(ranks))
    return found.bounds_G.tolist(), found.shared_G.tolist()


def test_rows_of_a_rank_share_what_all_of_them_have_in_common():
    table = [[4, 5, 6, 1], [4, 5, 7, 0], [4, 5, 8, 2], [9, 3, 0, 0]]
    assert groups_of(table, [3, 2, 2, 1], [0, 0, 0, 1]) == ([0, 3, 4], [2, 0])


def test_blocks_past_the_end_of_a_row_are_not_shared():
    table = [[4, 0, 0], [4, 0, 0]]
    assert groups_of(table, [1, 2], [0, 0]) == ([0, 2], [1])
    assert groups_of(table, [0, 0], [0, 0]) == ([0, 1, 2], [0, 0])


def test_equal_blocks_of_other_ranks_are_left_apart():
    assert groups_of([[4, 1], [4, 2]], [1, 1], [0, 1]) == ([0, 1, 2], [0, 0])


def test_a_row_of_the_rank_that_shares_nothing_ends_a_run():
    table = [[4, 1], [4, 2], [8, 3], [4, 6], [4, 7]]
    assert groups_of(table, [1] * 5, [0] * 5) == ([0, 2, 3, 5], [1, 0, 1])


def test_what_is_shared_can_end_where_a_run_of_blocks_does():
    table = np.array([[4, 5, 6, 1], [4, 5, 6, 2], [9, 3, 0, 0], [9, 4, 0, 0]], np.int32)
    groups = find_groups(table, np.array([3, 3, 2, 2]), np.array([0, 0, 1, 1]))
    assert end_together(groups, 2).shared_R.tolist() == [2, 2, 0, 0]


def test_one_row_shares_nothing():
    assert groups_of([[4, 1]], [1], [0]) == ([0, 1], [0])


def test_suffixes_begin_after_the_shared_blocks():
    table_RB = np.array([[4, 5, 6], [7, 8, 9]], np.int32)
    suffix_RB = suffixes(table_RB, np.array([2, 0]))
    assert suffix_RB[0, 0] == 6
    assert suffix_RB[1].tolist() == [7, 8, 9]
    assert set(suffix_RB[0].tolist()) <= {4, 5, 6}
