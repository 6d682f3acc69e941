"""Whether optimizer state moves away for sampling: from what was said, and what memory there is."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tandem.config import read_config
from tandem.models.shape import Shape
from tandem.runtime.building import Known
from tandem.runtime.room import (
    GIB,
    Demand,
    Room,
    demand_of,
    host_free,
    make_room,
    may_move,
    moves_state,
)

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


QWEN3_4B = Shape(
    family="qwen3", num_layers=36, width=2560, ffn=9728, num_heads=32, num_key_heads=8,
    head_size=128, vocab=151936, eps=1e-6, rope_theta=1e6, tied=True, qkv_bias=False, qk_norm=True,
    max_positions=40960,
)  # fmt: skip
OPENED = SimpleNamespace(shape=QWEN3_4B, max_context=40960, held_out=())
KNOWN = Known(opened=OPENED, found=None, num_rollout=1, hooks=None)
ROUND = "--rollout-batch-size 8 --n-samples-per-prompt 8 --rollout-max-response-len 8192 "


def test_a_demand_is_the_largest_round_of_an_engine_at_its_longest(told):
    token, weights = 2 * 36 * 8 * 128 * 2, 2 * 4_022_468_096
    one = demand_of(told(ROUND), KNOWN, "cuda", has_weights=False)
    assert one == Demand(cache=64 * 8192 * token, weights=0, fraction=0.85, sees_free=False)
    longer = told(f"{ROUND} --rollout-max-prompt-len 1024 --engine-max-running 32")
    assert demand_of(longer, KNOWN, "cuda", has_weights=False).cache == 32 * 9216 * token
    words = f"{ROUND} --actor-num-gpus-per-node 4 --colocate --rollout-num-gpus-per-engine 2"
    divided = demand_of(told(words), KNOWN, "cuda", has_weights=True)
    assert divided.cache == 32 * 8192 * token // 2 and divided.weights == weights // 2


class Ranks:
    """Notes that it was told to sleep."""

    is_asleep = False

    def sleep(self):
        self.is_asleep = True


@pytest.mark.parametrize(
    ("words", "num_ranks", "moves", "said"),
    [
        ("--rollout-max-response-len 2048", 1, False, "a cache has 64.0 GiB and wants 18.0"),
        ("", 1, True, "waits in host memory while engines sample: beside it a cache has 64.0 GiB"),
        ("", 8, False, "wants 72.0, but one has 400.0 GiB of host memory free for 360.0"),
        ("--no-offload-train", 1, False, "stays where it is: --no-offload-train"),
    ],
)
def test_state_is_put_to_sleep_or_not_and_the_log_says_why(
    words, num_ranks, moves, said, told, caplog
):
    log, ranks, cfg = logging.getLogger("tandem.run"), Ranks(), told(f"{ROUND} {words}")
    log.addHandler(caplog.handler)
    level = log.level
    log.setLevel(logging.INFO)
    make_room(cfg, KNOWN, ranks, lambda: [ROOM] * num_ranks, "cuda", has_weights=False)
    log.setLevel(level)
    log.removeHandler(caplog.handler)
    assert ranks.is_asleep is moves
    assert said in caplog.text
