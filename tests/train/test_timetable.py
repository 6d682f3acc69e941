"""Every row passes every stage, in an order that can be kept and with bounded memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.train.timetable import Move, timetable


def moves_of(ticks, rank):
    return [tick[rank] for tick in ticks if tick[rank] is not None]


@settings(max_examples=100, deadline=None)
@given(
    processes=st.integers(1, 5),
    chunks=st.integers(1, 3),
    rows=st.integers(1, 9),
    trains=st.booleans(),
)
def test_every_move_is_made_once_and_after_what_it_needs(processes, chunks, rows, trains):
    chunks = chunks if processes > 1 else 1
    num_stages = processes * chunks
    made: dict[Move, int] = {}
    for at, tick in enumerate(timetable(processes, chunks, rows, trains=trains)):
        for rank, move in enumerate(tick):
            if move is None:
                continue
            assert move.stage % processes == rank and move not in made
            made[move] = at
            if move.is_forward and move.stage:
                assert made[Move(True, move.stage - 1, move.row)] < at
            if not move.is_forward:
                assert made[Move(True, move.stage, move.row)] < at
                if move.stage < num_stages - 1:
                    assert made[Move(False, move.stage + 1, move.row)] < at
    assert len(made) == num_stages * rows * (2 if trains else 1)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_without_chunks_it_is_1f1b(processes):
    ticks = timetable(processes, 1, 8)
    # each row costs two moves; filling and draining the pipeline cost two for each other stage
    assert len(ticks) == 2 * 8 + 2 * (processes - 1)
    for rank in range(processes):
        held = most = 0
        for move in moves_of(ticks, rank):
            held += 1 if move.is_forward else -1
            most = max(most, held)
        assert most == processes - rank, "rows whose activations a process holds"


def test_chunks_shorten_the_time_in_which_processes_wait():
    plain, interleaved = timetable(4, 1, 8), timetable(4, 2, 8)
    # a move of half the layers takes half the time
    assert len(interleaved) / 2 < len(plain)


def test_scoring_only_goes_forward():
    ticks = timetable(2, 1, 3, trains=False)
    assert [move.row for move in moves_of(ticks, 1)] == [0, 1, 2]
    assert len(ticks) == 4
