"""Who sleeps when on shared devices: decided from what is seen of their memory."""

import pytest

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
    """A device of 100 GiB: `taken` by training, with a cache of 40 that may sleep."""

    def __init__(self, taken=10):
        self.taken, self.is_awake, self.done = taken, True, []

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
    return Turns(Ranks(device), device, said.append, measure=device.memories, **how)


def round_of(turns, device, taken):
    """What is done with the cache in a round that trains with so much memory."""
    devices = turns.devices()
    with devices.sampling():
        pass
    with devices.learning():
        device.taken = taken
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
    for taken in (45, 45, 55):
        round_of(turns, device, taken)
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
