"""Which devices of which hosts servers take, and which rank sends to them."""

import pytest

from tandem.engine.sglang.launch import Place
from tandem.errors import ConfigError
from tandem.runtime.ray.placement import Placement
from tandem.runtime.ray.servers import Device, RankCarrier, senders_of, spots_of
from tandem.types import Weights


def seen_on(*counts):
    """Devices by number, so many on each host: the first is the driver's, `node0`."""
    devices = [
        Device(node=f"node{node}", host=f"10.0.0.{node}", number=str(number))
        for node, count in enumerate(counts)
        for number in range(count)
    ]
    return dict(enumerate(devices))


def placement_of(num_trainers, engines):
    size = max(engine.stop for engine in engines)
    return Placement(num_devices=size, num_trainers=num_trainers, engines=tuple(engines))


def test_servers_on_one_host_are_reached_on_the_loopback_and_see_each_others_devices():
    placement = placement_of(2, [range(2, 4), range(4, 6)])
    seen = seen_on(6)
    engines = spots_of(placement, seen, "node0")
    assert [len(spots) for spots in engines] == [1, 1]
    (first,), (second,) = engines
    assert (first.first_gpu, second.first_gpu) == (0, 2)
    assert first.visible == second.visible == ("2", "3", "4", "5")
    assert first.host == "127.0.0.1"


def test_servers_of_several_hosts_have_the_addresses_of_theirs():
    placement = placement_of(2, [range(2, 4), range(4, 6)])
    (first,), (second,) = spots_of(placement, seen_on(4, 2), "node0")
    assert (first.node, first.host, first.visible) == ("node0", "10.0.0.0", ("2", "3"))
    assert (second.node, second.host, second.first_gpu) == ("node1", "10.0.0.1", 0)
    # servers on the driver's host alone are far for a first rank that is elsewhere
    ((near,),) = spots_of(placement_of(1, [range(1, 2)]), seen_on(1, 1), "node1")
    assert near.host == "10.0.0.1"


def test_an_engine_over_two_hosts_is_a_process_on_each():
    (spots,) = spots_of(placement_of(0, [range(4)]), seen_on(2, 2), "node0")
    assert [(spot.node, spot.first_gpu, len(spot.visible)) for spot in spots] == [
        ("node0", 0, 2),
        ("node1", 0, 2),
    ]


@pytest.mark.parametrize(
    ("placement", "counts", "wanted"),
    [
        (placement_of(0, [range(4)]), (3, 1), "2 hosts, 3 [+] 1"),
        (placement_of(4, [range(4)]), (2, 2), "set at most 2"),
    ],
)
def test_engines_that_hosts_cannot_hold_are_refused(placement, counts, wanted):
    with pytest.raises(ConfigError, match=wanted):
        spots_of(placement, seen_on(*counts), "node0")


def test_the_first_rank_of_each_host_sends_where_devices_are_shared():
    placement = placement_of(4, [range(one, one + 1) for one in range(4)])
    seen = seen_on(2, 2)
    place = Place(
        dtype="bfloat16",
        is_cpu=False,
        engines=spots_of(placement, seen, "node0"),
        shares_device=True,
        largest_batch=8,
    )
    carrier = RankCarrier(place, senders_of(placement, seen))

    class Trainers:
        def send(self, shares, version, place):
            self.shares = shares

    class Address:
        def __init__(self, number):
            self.name, self.address = f"SGLang server {number}", number

    carrier.trainers = Trainers()
    carrier.send([Address(number) for number in range(4)], Weights(version=1, named=()))
    assert carrier.trainers.shares == {0: [0, 1], 2: [2, 3]}
