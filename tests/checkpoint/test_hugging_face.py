import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tandem.checkpoint.hugging_face import (
    is_hugging_face,
    load_hugging_face,
    read_hugging_face,
    save_hugging_face,
)
from tandem.checkpoint.names import to_hugging_face
from tandem.errors import CheckpointError
from tandem.models.decoder import Decoder
from tandem.models.shape import read_shape


def _weights(folder) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def _named(folder):
    shape = read_shape(folder)
    return to_hugging_face(shape, read_hugging_face(shape, folder))


def _is_equal(one, other) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_saved_again_in_pieces_every_bit_is_the_same(make_folder, tmp_path, family, tied):
    source = make_folder(
        dtype=torch.bfloat16, model_type=family, head_dim=None, tie_word_embeddings=tied
    )
    save_hugging_face(_named(source), tmp_path / "out", source, chunk_bytes=1500)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert _is_equal(_weights(tmp_path / "out"), _weights(source))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in _weights(source).values())
    # and the sharded folder reads like the single file
    save_hugging_face(_named(tmp_path / "out"), tmp_path / "again", source)
    assert (tmp_path / "again" / "model.safetensors").is_file()
    assert _is_equal(_weights(tmp_path / "again"), _weights(source))


def test_all_but_weights_and_card_are_copied(make_folder, tmp_path):
    source = make_folder()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("tool")
    save_hugging_face(_named(source), tmp_path / "out", source)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "tool"
    assert not (tmp_path / "out" / "README.md").exists()


def test_the_config_names_the_dtype_of_the_weights(make_folder, tmp_path):
    source = make_folder(dtype=torch.float32)
    named = ((name, tensor.bfloat16()) for name, tensor in _named(source))
    save_hugging_face(named, tmp_path / "out", source)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_loading_casts_to_the_dtype_of_the_decoder(make_folder):
    source = make_folder(dtype=torch.bfloat16)
    decoder = Decoder(read_shape(source), torch.float32, "cpu")
    load_hugging_face(decoder, source)
    weights = _weights(source)
    assert decoder.norm.weight.dtype == torch.float32
    assert decoder.norm.weight.equal(weights["model.norm.weight"].float())


def test_every_difference_is_reported_and_nothing_is_written(make_folder):
    source = make_folder()
    weights = _weights(source)
    del weights["model.norm.weight"]
    weights["model.strange"] = torch.zeros(1)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 16)
    save_file(weights, source / "model.safetensors")
    decoder = Decoder(read_shape(source), torch.float32, "cpu")
    torch.nn.init.constant_(decoder.embed.weight, 7.0)
    with pytest.raises(CheckpointError) as caught:
        load_hugging_face(decoder, source)
    text = str(caught.value)
    assert "missing: model.norm.weight" in text
    assert "not known: model.strange" in text
    assert "model.layers.1.mlp.up_proj.weight is (5, 16), wanted (24, 16)" in text
    assert decoder.embed.weight.eq(7).all()


def test_a_tied_folder_may_repeat_its_embedding_as_head_but_not_hold_another(make_folder):
    source = make_folder(tie_word_embeddings=True)
    weights = _weights(source)
    embed = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embed.clone()}, source / "model.safetensors")
    load_hugging_face(Decoder(read_shape(source), torch.float32, "cpu"), source)
    save_file(weights | {"lm_head.weight": embed + 1}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not known: lm_head\.weight"):
        load_hugging_face(Decoder(read_shape(source), torch.float32, "cpu"), source)


def test_a_lost_shard_and_a_torn_file_are_named(make_folder, tmp_path):
    source = make_folder()
    save_hugging_face(_named(source), tmp_path / "out", source, chunk_bytes=3000)
    lost = sorted((tmp_path / "out").glob("model-*.safetensors"))[1]
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        list(_named(tmp_path / "out"))
    lost.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="broken"):
        list(_named(tmp_path / "out"))


def test_a_folder_with_old_weight_files_says_what_to_do(make_folder):
    source = make_folder()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save it again as safetensors"):
        list(_named(source))


def test_the_output_is_replaced_only_by_force_and_never_the_origin(make_folder, tmp_path):
    source = make_folder()
    out = tmp_path / "out"
    save_hugging_face(_named(source), out, source)
    with pytest.raises(CheckpointError, match="--force"):
        save_hugging_face(_named(source), out, source)
    (out / "left.txt").write_text("from before")
    save_hugging_face(_named(source), out, source, force=True)
    assert not (out / "left.txt").exists()
    with pytest.raises(CheckpointError, match="origin itself"):
        save_hugging_face(_named(source), source, source, force=True)


def test_wrong_weights_leave_nothing_behind(make_folder, tmp_path):
    source = make_folder()
    some = [pair for pair in _named(source) if "norm" not in pair[0]]
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight"):
        save_hugging_face(some, tmp_path / "new" / "out", source)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_config_of_a_run_is_not_a_model_folder(make_folder, tmp_path):
    assert is_hugging_face(make_folder())
    (tmp_path / "config.json").write_text('{"data": {"input_key": "prompt"}}')
    assert not is_hugging_face(tmp_path)
