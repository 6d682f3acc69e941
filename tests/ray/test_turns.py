"""Whether caches sleep while ranks train: decided from what is seen of the devices' memory."""

import pytest

from tandem.runtime.ray.turns import Memory, Turns

GB = 2**30


class Shared:
    """A device of 100 GiB: `taken` by training, with a cache of 40 that may sleep."""

    def __init__(self, taken=10):
        self.taken, self.is_awake, self.done = taken, True, []

    def trim(self):
        self.done.append("trim")

    def forget(self):
        self.done.append("forget")

    def sleep(self):
        self.done.append("sleep")
        self.is_awake = False

    def wake(self):
        self.done.append("wake")
        self.is_awake = True

    def is_busy(self):
        return False

    def memories(self):
        return [Memory(free=(100 - self.taken - 40 * self.is_awake) * GB, total=100 * GB)]


@pytest.fixture
def said():
    return []


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
    turns = Turns(device, device, said.append)
    assert round_of(turns, device, 45) == ["trim", "wake", "forget", "sleep"]
    assert round_of(turns, device, 45) == ["wake", "forget"]
    assert round_of(turns, device, 45) == ["wake", "forget"]
    assert device.is_awake
    assert "90.00 of 100.00 GiB free" in said[0]  # what sleeping gave back can be read there


def test_caches_sleep_where_training_needs_their_room(said):
    device = Shared()
    turns = Turns(device, device, said.append)
    for _ in range(3):
        assert round_of(turns, device, 55) == ["trim", "wake", "forget", "sleep"]
    assert said[-1].endswith("caches sleep while ranks train")


def test_caches_sleep_again_once_training_has_grown(said):
    device = Shared()
    turns = Turns(device, device, said.append)
    for taken in (45, 45, 55):
        round_of(turns, device, taken)
    assert round_of(turns, device, 55) == ["trim", "wake", "forget", "sleep"]
    assert said[-1].startswith("training has grown")
