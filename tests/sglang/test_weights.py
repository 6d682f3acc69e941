"""Buckets, what a server reads of them, and folders."""

import base64
import io
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file

from tandem.carriers.buckets import buckets
from tandem.engine.sglang.buckets import handle_of
from tandem.engine.sglang.router import StockRouter
from tandem.engine.sglang.weights import FolderCarrier


def named(*sizes, dtype=torch.float32):
    return [(f"w{n}", torch.arange(size, dtype=dtype)) for n, size in enumerate(sizes)]


def test_buckets_keep_order_and_stay_within_the_limit():
    made = list(buckets(named(10, 10, 10, 100, 1), limit=80))
    assert [bucket.form.names for bucket in made] == [("w0", "w1"), ("w2",), ("w3",), ("w4",)]
    assert made[2].flat.numel() == 400  # larger than the limit, so alone


def test_a_bucket_has_one_dtype():
    mixed = [*named(3), *named(2, dtype=torch.bfloat16)]
    assert [bucket.form.dtype for bucket in buckets(mixed, 1 << 20)] == [
        torch.float32,
        torch.bfloat16,
    ]


def test_a_bucket_is_read_back_from_its_handle():
    tensors = [("a", torch.randn(3, 5)), ("b", torch.randn(7))]
    (bucket,) = buckets(tensors, 1 << 20)
    read = pickle.load(io.BytesIO(base64.b64decode(handle_of(bucket))))
    for (name, tensor), entry in zip(tensors, read["metadata"], strict=True):
        piece = read["flattened_tensor"][entry.start_idx : entry.end_idx]
        assert entry.name == name
        assert torch.equal(piece.view(entry.dtype).reshape(entry.shape), tensor)


def test_a_bucket_does_not_change_with_the_trainers_tensor():
    tensor = torch.zeros(4)
    (bucket,) = buckets([("a", tensor)], 1 << 20)
    tensor += 1
    assert not bucket.flat.any()


@pytest.mark.parametrize("keeps", [True, False])
def test_a_folder_holds_a_version_while_servers_read_it(keeps, one, ways, tmp_path):
    state, engine = one
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("old weights")
    seen = {}

    def look(folder):
        where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        seen.update({name: load_file(folder / file)[name] for name, file in where.items()})
        assert (folder / "config.json").is_file()
        assert not (folder / "model.safetensors").exists()

    carrier = FolderCarrier(
        engine.fleet.line, 1 << 20, tmp_path / "out", model=model, keeps=keeps, after=look
    )
    sent = ways.weights(9)
    carrier.send([member.server for member in engine.fleet.members], sent)
    assert torch.equal(seen["model.embed_tokens.weight"], sent.named[0][1])
    assert state.buckets[-1]["load_format"] == "auto"  # not the server's own, which is dummy
    folder = tmp_path / "out" / "weight_v000009"
    assert state.buckets[-1]["model_path"] == str(folder)
    assert folder.exists() is keeps


def test_a_router_that_goes_by_keys_gets_the_group():
    assert StockRouter("http://r", policy="cache_aware").headers("g") == {}
    keyed = StockRouter("http://r", policy="consistent_hashing")
    assert keyed.headers("g") == {"X-SMG-Routing-Key": "g"} and keyed.headers(None) == {}
