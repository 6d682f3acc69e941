"""Whether optimizer state moves away for sampling: from what was said, and what memory there is."""

from dataclasses import replace

import pytest

from tandem.config import read_config
from tandem.runtime.room import GIB, Demand, Room, host_free, may_move, moves_state

ROOM = Room(
    state=45 * GIB,
    held=55 * GIB,
    free=85 * GIB,
    total=140 * GIB,
    host="one",
    host_free=400 * GIB,
)
OURS = Demand(cache=60 * GIB, weights=0, fraction=0.85, sees_free=False)
"""The rule gives a cache 0.85 x 140 - 55 = 64 GiB beside the state, and 109 without it."""
SERVERS = Demand(cache=60 * GIB, weights=8 * GIB, fraction=0.8, sees_free=True)
"""0.8 x 85 - 8 = 60 GiB, and 96."""


@pytest.fixture
def told():
    def read(words=""):
        return read_config(words.split())[0]

    return read


def test_state_stays_where_the_answers_that_run_at_once_fit_beside_it(told):
    moves, why = moves_state(told(), [ROOM], OURS)
    assert not moves
    assert "(45.0 GiB) stays" in why and "has 64.0 GiB and wants 60.0" in why
    assert not moves_state(told("--colocate"), [ROOM], SERVERS)[0]


def test_state_moves_where_they_do_not(told):
    for demand in (OURS, SERVERS):
        moves, why = moves_state(told("--colocate"), [ROOM], replace(demand, cache=65 * GIB))
        assert moves, why
    assert "wants 65.0" in why and "without it 96.0" in why


def test_the_device_with_the_least_room_decides_for_all(told):
    tight = replace(ROOM, free=75 * GIB, held=65 * GIB)
    assert not moves_state(told(), [ROOM, ROOM], OURS)[0]
    assert moves_state(told(), [ROOM, tight], OURS)[0]


def test_state_stays_where_the_host_has_no_room_for_that_of_all_its_ranks(told):
    large = replace(OURS, cache=100 * GIB)
    assert moves_state(told(), [ROOM] * 6, large)[0]
    moves, why = moves_state(told(), [ROOM] * 8, large)
    assert not moves and "one has 400.0 GiB of host memory free for 360.0" in why
    other = replace(ROOM, host="two")
    assert moves_state(told(), [ROOM] * 4 + [other] * 4, large)[0]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--offload-train", True),
        ("--offload", True),
        ("--colocate --no-offload-train", False),
        ("--no-offload-train", False),
    ],
)
def test_what_was_said_wins_over_what_was_seen(told, words, wanted):
    for demand in (OURS, replace(OURS, cache=100 * GIB)):
        moves, why = moves_state(told(words), [ROOM], demand)
        assert moves is wanted and "offload-train" in why


def test_no_state_on_the_devices_moves_nowhere(told):
    moves, why = moves_state(told("--offload-train"), [replace(ROOM, state=0)], OURS)
    assert not moves and "no optimizer state" in why


def test_nothing_is_decided_where_no_turns_are_taken(told):
    assert may_move(told("--colocate"), "cuda")
    assert not may_move(told("--colocate"), "cpu")
    assert may_move(told("--offload-train"), "cpu")
    assert not may_move(told("--offload-train --asynchronous one-step"), "cuda")
    assert not may_move(told("--offload-train --debug-train-only"), "cuda")
    assert not may_move(told("--colocate --loss-type sft_loss"), "cuda")


def test_a_host_says_what_it_has_free():
    assert host_free() > 1 << 20
