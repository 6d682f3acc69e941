"""What is replayed gives what it gave, and follows what its inputs hold."""

import torch

from tandem.kernels.replay import Replayed, places_of


def test_a_computation_is_prepared_once_a_key_and_follows_its_weights(device):
    layer, x, prepared = torch.nn.Linear(4, 4), torch.randn(3, 4), []

    def prepare():
        prepared.append(1)
        return lambda: layer(x)

    def found(replayed):
        return replayed(places_of(layer), prepare).read()[0].tolist()

    replayed = Replayed()
    if device.type == "cpu":  # only the first call of a key computes there
        with torch.no_grad():
            assert found(replayed) == layer(x).tolist()
        return
    for _ in range(4):
        with torch.no_grad():
            layer.weight.normal_()
            assert found(replayed) == layer(x).tolist()
    assert len(prepared) == 1
    layer.weight.data = layer.weight.data.clone()
    with torch.no_grad():
        assert found(replayed) == layer(x).tolist()
    assert len(prepared) == 2
