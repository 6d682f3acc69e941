import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tandem.checkpoint import torch_dist
from tandem.checkpoint.convert import convert_command, hf_to_torch_dist, torch_dist_to_hf
from tandem.checkpoint.hugging_face import read_hugging_face
from tandem.errors import CheckpointError, ConfigError
from tandem.models.shape import read_shape

TOOLS = Path(__file__).parents[2] / "tools"

MODEL_ARGS = [
    *("--swiglu", "--num-layers", "2", "--hidden-size", "16", "--ffn-hidden-size", "24"),
    *("--num-attention-heads", "4", "--group-query-attention", "--num-query-groups", "2"),
    *("--use-rotary-position-embeddings", "--disable-bias-linear", "--normalization", "RMSNorm"),
    *("--norm-epsilon", "1e-6", "--rotary-base", "10000", "--vocab-size", "31"),
    *("--kv-channels", "8", "--qk-layernorm", "--untie-embeddings-and-output-weights"),
]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.equal(other[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_there_and_back_is_bit_exact(make_folder, tmp_path, family, dtype):
    source = make_folder(dtype=dtype, model_type=family, tie_word_embeddings=family == "qwen2")
    assert hf_to_torch_dist(source, tmp_path / "dist") == tmp_path / "dist" / "release"
    torch_dist_to_hf(tmp_path / "dist", tmp_path / "back", source)
    _assert_equal(_weights(tmp_path / "back"), _weights(source))
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_the_tools_and_the_command_take_the_flags_of_the_dialect(make_folder, tmp_path):
    source = make_folder(dtype=torch.bfloat16)
    there = [sys.executable, str(TOOLS / "convert_hf_to_torch_dist.py"), *MODEL_ARGS]
    there += ["--hf-checkpoint", str(source), "--save", str(tmp_path / "dist")]
    subprocess.run(there, check=True, timeout=120)
    back = ["to-hugging-face", "--input-dir", str(tmp_path / "dist" / "release")]
    back += ["--output-dir", str(tmp_path / "back"), "--origin-hf-dir", str(source)]
    back += ["-f", "-a", "--chunk-size", "2KiB", "--vocab-size", "31", "--model-name", "qwen3"]
    assert convert_command(back) == 0
    _assert_equal(_weights(tmp_path / "back"), _weights(source))
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()


def test_the_other_tool_says_what_is_wrong_without_a_traceback(make_folder, tmp_path):
    command = [sys.executable, str(TOOLS / "convert_torch_dist_to_hf.py")]
    command += ["--input-dir", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]
    command += ["--origin-hf-dir", str(make_folder())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "is not there" in done.stderr
    assert "Traceback" not in done.stderr


def test_model_flags_are_checked_against_the_folder(make_folder, tmp_path):
    source = make_folder()
    wrong = [word.replace("24", "25") for word in MODEL_ARGS]
    wrong[wrong.index("--num-layers") + 1] = "3"
    with pytest.raises(ConfigError) as caught:
        convert_command(
            ["to-torch-dist", *wrong, "--hf-checkpoint", str(source), "--save", str(tmp_path / "d")]
        )
    assert len(caught.value.failures) == 2
    assert not (tmp_path / "d").exists()


def test_an_unknown_flag_stops_the_conversion(make_folder, tmp_path):
    command = ["to-torch-dist", "--hf-checkpoint", str(make_folder())]
    with pytest.raises(ConfigError, match="--num-layer"):
        convert_command([*command, "--save", str(tmp_path / "d"), "--num-layer", "2"])


def test_a_folder_with_the_saves_of_a_run_is_not_converted_into(make_folder, tmp_path):
    torch_dist.save(tmp_path / "run", 4, {"model.a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"saves of a run \(iterations 4\)"):
        hf_to_torch_dist(make_folder(), tmp_path / "run")


def _trained(source: Path, root: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Saves what a trainer would after rollout 6: other weights, and the optimizer's state."""
    shape = read_shape(source)
    weights = {name: tensor * 2 for name, tensor in read_hugging_face(shape, source)}
    weights = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors["optimizer.step"] = torch.tensor(3.0)
    torch_dist.save(root, 6, tensors, {"seed": 1})
    return weights


def test_a_trained_checkpoint_becomes_a_model_with_its_weights(make_folder, tmp_path):
    source = make_folder(dtype=torch.bfloat16)
    _trained(source, tmp_path / "run")
    torch_dist_to_hf(tmp_path / "run", tmp_path / "out", source)
    twice = {name: tensor * 2 for name, tensor in _weights(source).items()}
    _assert_equal(_weights(tmp_path / "out"), twice)


def test_a_missing_tensor_is_an_error_or_comes_from_the_origin(make_folder, tmp_path):
    source = make_folder(dtype=torch.bfloat16)
    _trained(source, tmp_path / "run", **{"head.weight": None})
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        torch_dist_to_hf(tmp_path / "run", tmp_path / "out", source)
    torch_dist_to_hf(tmp_path / "run", tmp_path / "out", source, add_missing=True)
    head = _weights(tmp_path / "out")["lm_head.weight"]
    assert head.equal(_weights(source)["lm_head.weight"])


def test_padded_rows_of_the_vocabulary_are_cut_when_asked(make_folder, tmp_path):
    source = make_folder(dtype=torch.bfloat16)
    padded = {name: torch.ones(40, 16) for name in ("embed.weight", "head.weight")}
    _trained(source, tmp_path / "run", **padded)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is \(40, 16\), wanted \(31, 16\)"):
        torch_dist_to_hf(tmp_path / "run", tmp_path / "out", source)
    torch_dist_to_hf(tmp_path / "run", tmp_path / "out", source, vocab_size=31)
    assert _weights(tmp_path / "out")["lm_head.weight"].shape == (31, 16)
    with pytest.raises(CheckpointError, match="--vocab-size 30 is not that"):
        torch_dist_to_hf(tmp_path / "run", tmp_path / "o", source, vocab_size=30)


def test_another_model_is_refused(make_folder, tmp_path):
    hf_to_torch_dist(make_folder(), tmp_path / "dist")
    other = make_folder("other", model_type="qwen2")
    with pytest.raises(CheckpointError, match=r"not known: .*q_norm"):
        torch_dist_to_hf(tmp_path / "dist", tmp_path / "out", other)


def test_transformers_reads_what_came_back(tmp_path):
    import tokenizers
    import transformers

    words = {word: i for i, word in enumerate(["<unk>", "<end>", "one", "two", "user"])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    config = transformers.Qwen3Config(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        dtype="bfloat16",
    )
    model = transformers.Qwen3ForCausalLM(config).bfloat16()
    source = tmp_path / "source"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)

    hf_to_torch_dist(source, tmp_path / "dist")
    torch_dist_to_hf(tmp_path / "dist", tmp_path / "back", source, chunk_bytes=4000)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    _assert_equal(dict(back.state_dict()), dict(model.state_dict()))
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    chat = [{"role": "user", "content": "two one"}]
    assert read.apply_chat_template(chat, return_dict=False) == [4, 3, 2]
