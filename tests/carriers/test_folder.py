"""Weights that travel as folders, whole or as what changed."""

import json

import pytest
import torch

from tandem.carriers.delta import DeltaWriter, LocalCopy, checksum_function
from tandem.carriers.folder import copied_here, named_in, write
from tandem.errors import ConfigError, SyncError


def same(found, wanted):
    found = dict(found)
    return set(found) == set(wanted) and all(found[name].equal(wanted[name]) for name in wanted)


def stepped(weights, seed):
    """What a small step makes of the weights: some numbers of most tensors, none of the norms."""
    made = torch.Generator().manual_seed(seed)
    new = {}
    for name, tensor in weights.items():
        moves = torch.rand(tensor.shape, generator=made) < 0.1
        new[name] = tensor if "norm" in name else torch.where(moves, tensor + 1, tensor)
    return new


def test_a_folder_holds_what_was_written(model, tmp_path):
    weights = model.weights(0)
    folder = write(tmp_path / "disk", 7, weights.items(), model.origin)
    assert folder.name == "weight_v000007" and (folder / "config.json").is_file()
    assert same(named_in(folder), weights)


def test_a_host_keeps_a_copy_of_the_last_version_alone(model, tmp_path):
    for version in (0, 1):
        weights = model.weights(version)
        folder = write(tmp_path / "disk", version, weights.items(), model.origin)
        copy = copied_here(folder, tmp_path / "local")
        assert copy == copied_here(folder, tmp_path / "local")
    assert [path.name for path in sorted((tmp_path / "local").glob("weight*"))] == [copy.name]
    assert same(named_in(copy), weights)


def test_a_folder_that_this_host_does_not_see_is_named(tmp_path):
    with pytest.raises(SyncError, match="weight_v000003"):
        copied_here(tmp_path / "weight_v000003", tmp_path / "local")
    with pytest.raises(SyncError, match="weight_v000003"):
        list(named_in(tmp_path / "weight_v000003"))


def writer(model, tmp_path, encoding="xor", checksum="adler32"):
    return DeltaWriter(tmp_path / "disk", model.origin, encoding=encoding, checksum=checksum)


@pytest.mark.parametrize(
    ("encoding", "checksum"), [("xor", "xxh3-128"), ("overwrite", "adler32"), ("xor", "adler32")]
)
def test_a_copy_that_is_patched_follows_version_by_version(model, tmp_path, encoding, checksum):
    sends = writer(model, tmp_path, encoding, checksum)
    copies = [LocalCopy(tmp_path / "host 0"), LocalCopy(tmp_path / "host 1")]
    weights = model.weights(0)
    base = sends.write(4, weights.items())
    for copy in copies:
        assert same(named_in(copy.follow(base.folder)), weights)
    for version in (5, 6):
        weights = stepped(weights, version)
        sent = sends.write(version, weights.items())
        for copy in (*copies, copies[0]):  # the second process of a host changes nothing
            assert same(named_in(copy.follow(sent.folder)), weights)
        assert 0 < sent.density < 0.1 and 0 < sent.wire_bytes < base.wire_bytes
        index = json.loads((sent.folder / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {
            "version": version,
            "base_version": version - 1,
            "delta_encoding": encoding,
            "compression_format": "zstd",
            "checksum_format": checksum,
        }
        assert not any("norm" in name for name in index["weight_map"])


def test_a_wrong_base_is_refused_until_all_weights_came_again(model, tmp_path):
    sends, copy = writer(model, tmp_path), LocalCopy(tmp_path / "host")
    weights = model.weights(0)
    copy.follow(sends.write(0, weights.items()).folder)
    sends.write(1, stepped(weights, 1).items())
    weights = stepped(weights, 2)
    second = sends.write(2, weights.items())
    with pytest.raises(SyncError, match="holds version 0, and weight_v000002 changes version 1"):
        copy.follow(second.folder)
    copy.replace(2, weights.items(), model.origin)
    assert same(named_in(copy.follow(second.folder)), weights)
    weights = stepped(weights, 3)
    assert same(named_in(copy.follow(sends.write(3, weights.items()).folder)), weights)


def test_bytes_that_went_wrong_on_a_host_are_found(model, tmp_path):
    sends, copy = writer(model, tmp_path), LocalCopy(tmp_path / "host")
    weights = model.weights(0)
    folder = copy.follow(sends.write(0, weights.items()).folder)
    path = folder / "model.safetensors"
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)
    after = {name: tensor + 1 for name, tensor in weights.items()}
    third = sends.write(1, after.items()).folder
    with pytest.raises(SyncError, match="is not what was sent"):
        copy.follow(third)
    with pytest.raises(SyncError, match="no whole version"):
        copy.follow(third)


def test_a_run_that_starts_again_seeds_again(model, tmp_path):
    copy = LocalCopy(tmp_path / "host")
    for seed in (0, 1):
        weights = model.weights(seed)
        sent = writer(model, tmp_path).write(0, weights.items())
        assert same(named_in(copy.follow(sent.folder)), weights)


def test_a_checksum_without_its_package_is_refused():
    with pytest.raises(ConfigError, match="--update-weight-delta-checksum blake3"):
        checksum_function("blake3")
