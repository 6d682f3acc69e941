"""Who sleeps when on shared devices: decided from what is seen of their memory."""

from dataclasses import replace

import pytest

from tandem.engine.sglang.launch import Place
from tandem.runtime.servers import server_devices
from tandem.runtime.turns import Memory, Turns
from tandem.types import EngineStats

GB = 2**30
IDLE = EngineStats(
    version=0,
    num_running=0,
    num_waiting=0,
    num_cache_blocks=0,
    num_free_blocks=0,
    num_generated_tokens=0,
    num_prefill_tokens=0,
    num_cached_tokens=0,
)


class Shared:
    """A device of 100 GiB: `most` taken by training, with a cache of 40 that may sleep."""

    def __init__(self, taken=10):
        self.taken = self.most = taken
        self.is_awake, self.done = True, []

    def forget(self):
        self.done.append("forget")

    def sleep(self):
        self.done.append("sleep")
        self.is_awake = False

    def wake(self):
        self.done.append("wake")
        self.is_awake = True

    def stats(self):
        return IDLE

    def memories(self):
        return [Memory(free=(100 - self.taken - 40 * self.is_awake) * GB, total=100 * GB)]

    def least_memories(self):
        return [Memory(free=(100 - self.most - 40 * self.is_awake) * GB, total=100 * GB)]


@pytest.fixture
def said():
    return []


class Ranks:
    """Trains on a device: what it is told is written down with what the cache is told."""

    def __init__(self, device):
        self.device = device

    def trim(self):
        self.device.done.append("trim")

    def sleep(self):
        self.device.done.append("state sleeps")

    def wake(self):
        self.device.done.append("state wakes")


def turns_of(device, said, **how):
    return Turns(
        Ranks(device), device, said.append, measure=device.memories,
        least=device.least_memories, **how,
    )  # fmt: skip


def round_of(turns, device, most):
    """What is done with the cache in a round whose training takes so much and keeps nothing."""
    devices = turns.devices()
    with devices.sampling():
        pass
    with devices.learning():
        device.most = most
    done, device.done = device.done, []
    return done


def test_caches_stay_where_training_leaves_room_for_them(said):
    device = Shared()
    turns = turns_of(device, said)
    assert round_of(turns, device, 45) == ["trim", "wake", "forget", "sleep"]
    assert round_of(turns, device, 45) == ["wake", "forget"]
    assert round_of(turns, device, 45) == ["wake", "forget"]
    assert device.is_awake
    assert "90.00 of 100.00 GiB free" in said[0]  # what sleeping gave back can be read there


def test_caches_sleep_where_training_needs_their_room(said):
    device = Shared()
    turns = turns_of(device, said)
    for _ in range(3):
        assert round_of(turns, device, 55) == ["trim", "wake", "forget", "sleep"]
    assert said[-1].endswith("caches sleep while ranks train")


def test_caches_sleep_again_once_training_has_grown(said):
    device = Shared()
    turns = turns_of(device, said)
    for most in (45, 45, 55):
        round_of(turns, device, most)
    assert round_of(turns, device, 55) == ["trim", "wake", "forget", "sleep"]
    assert said[-1].startswith("training has grown")


def test_state_and_caches_give_way_in_turn_however_much_is_free(said):
    device = Shared()
    turns = turns_of(device, said, moves_state=True)
    for _ in range(3):
        wanted = ["state sleeps", "wake", "forget", "sleep", "state wakes"]
        assert round_of(turns, device, 20) == wanted


def test_caches_that_may_not_sleep_stay(said):
    device = Shared()
    turns = turns_of(device, said, caches_sleep=False)
    assert [round_of(turns, device, 55) for _ in range(2)] == [["forget"]] * 2
    moving = turns_of(device, said, caches_sleep=False, moves_state=True)
    assert round_of(moving, device, 55) == ["state sleeps", "forget", "state wakes"]
    assert not said


PLACE = Place(dtype="bfloat16", is_cpu=False, engines=(), shares_device=True, largest_batch=1)


@pytest.mark.parametrize("moves_state", [False, True])
def test_servers_take_their_memory_with_new_weights_once_the_state_is_away(moves_state):
    device = Shared()
    ranks = Ranks(device)
    ranks.is_asleep = moves_state
    devices = server_devices(device, PLACE, ranks)
    for _ in range(2):
        with devices.publishing():
            device.done.append("weights")
        with devices.sampling():
            device.done.append("sampled")
        with devices.learning():
            device.done.append("trained")
    if moves_state:
        one_round = ["state sleeps", "weights", "state sleeps", "sampled", "sleep", "state wakes"]
    else:
        one_round = ["trim", "weights", "sampled", "sleep"]
    assert device.done == [*one_round, "trained"] * 2


def test_servers_on_devices_of_their_own_take_no_turns():
    device = Shared()
    place = replace(PLACE, shares_device=False)
    devices = server_devices(device, place, Ranks(device))
    with devices.sampling(), devices.learning(), devices.publishing():
        assert not device.done
