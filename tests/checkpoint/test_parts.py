"""A part of a decoder reads its part of a Hugging Face folder, and no more."""

import pytest
import torch

from tandem.checkpoint.hugging_face import load_hugging_face
from tandem.checkpoint.names import hugging_face_shapes, pieces
from tandem.config import ParallelConfig
from tandem.models.decoder import Decoder
from tandem.models.part import parts_of
from tandem.models.shape import read_shape
from tandem.parallel import Sizes, make_mesh

MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
}
CASES = {
    "tensor": ({}, Sizes(tensor=2)),
    "bias and tied": ({"model_type": "qwen2", "tie_word_embeddings": True}, Sizes(tensor=2)),
    "stages": ({"tie_word_embeddings": True}, Sizes(tensor=2, pipeline=2)),
    "experts": (MOE, Sizes(data=4, expert=2, expert_tensor=2)),
}


def _decoders(shape, sizes):
    for rank in range(sizes.world):
        for part in parts_of(shape, make_mesh(rank, sizes, tuple), ParallelConfig()):
            yield Decoder(shape, torch.float32, "cpu", part)


@pytest.mark.parametrize("name", CASES)
def test_every_part_holds_its_shard_of_the_whole(make_folder, name):
    changes, sizes = CASES[name]
    folder = make_folder(**changes)
    shape = read_shape(folder)
    whole = Decoder(shape, torch.float32, "cpu")
    load_hugging_face(whole, folder)
    seen = set()
    for decoder in _decoders(shape, sizes):
        load_hugging_face(decoder, folder)
        for key, shard in decoder.shards().items():
            assert decoder.get_parameter(key).equal(shard.of(whole.get_parameter(key))), key
            seen.add(key)
    assert seen == {key for key, _ in whole.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_parts_read_each_number_as_often_as_they_hold_it(make_folder, name):
    changes, sizes = CASES[name]
    shape = read_shape(make_folder(**changes))
    theirs = hugging_face_shapes(shape)
    for decoder in _decoders(shape, sizes):
        for key, shard in decoder.shards().items():
            read = 0
            for piece, spans in pieces(shape, key, shard):
                assert all(
                    0 <= s.start < s.stop <= n for s, n in zip(spans, theirs[piece], strict=True)
                )
                count = 1
                for span in spans:
                    count *= span.stop - span.start
                read += count
            assert read == decoder.get_parameter(key).numel(), key
