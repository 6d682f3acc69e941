import json

import pytest

from tandem.errors import CheckpointError, ConfigError
from tandem.models.build import dtype_of
from tandem.models.shape import forward_flops, num_parameters, read_shape, shape_of

QWEN3_4B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 36,
    "eos_token_id": 151645,
}


def _without(config: dict, *names: str) -> dict:
    return {name: value for name, value in config.items() if name not in names}


def test_old_and_new_spelling_of_rope_give_one_shape():
    new = _without(QWEN3_4B, "rope_theta") | {
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}
    }
    assert shape_of(new) == shape_of(QWEN3_4B)
    assert shape_of(new).rope_scaling is None


def test_old_rope_scaling_keeps_its_parameters():
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    base = QWEN3_4B | {"model_type": "llama", "rope_theta": 500000.0}
    old = shape_of(base | {"rope_scaling": {"type": "llama3", **llama3}})
    new = shape_of(
        _without(base, "rope_theta")
        | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **llama3}}
    )
    assert old == new
    assert dict(old.rope_scaling) == {"rope_type": "llama3", **llama3}
    assert old.rope_theta == 500000.0


def test_head_size_follows_the_family_where_the_config_names_none():
    assert shape_of(_without(QWEN3_4B, "head_dim")).head_size == 128
    assert shape_of(_without(QWEN3_4B, "head_dim") | {"model_type": "qwen2"}).head_size == 80
    assert shape_of(QWEN3_4B | {"model_type": "llama", "head_dim": None}).head_size == 80


def test_num_parameters_of_qwen3_4b():
    # the sum over its published safetensors index: 8,044,936,192 bytes in bfloat16
    assert num_parameters(shape_of(QWEN3_4B)) == 4_022_468_096


def test_num_parameters_counts_every_tensor(make_model):
    for family in ("qwen3", "qwen2", "llama", "qwen3_moe", "qwen2_moe"):
        for tied in (True, False):
            model = make_model(family, tie_word_embeddings=tied)
            wanted = sum(parameter.numel() for parameter in model.parameters())
            assert num_parameters(shape_of(model.config.to_dict())) == wanted


def test_forward_flops_of_one_layer_by_hand():
    shape = shape_of(
        QWEN3_4B
        | {
            "num_hidden_layers": 1,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 3,
            "intermediate_size": 5,
            "vocab_size": 11,
        }
    )
    # q 2*4*8*6, k and v 4*4*8*3, attention 2*(2*16*3), out 2*4*64, ffn 6*4*8*5, head 2*4*8*11
    assert forward_flops(shape, 4) == 384 + 384 + 192 + 512 + 960 + 704


QWEN3_30B_A3B = QWEN3_4B | {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}


def test_experts_are_in_the_layers_that_the_config_says():
    def layers(**changes):
        return shape_of(QWEN3_30B_A3B | {"num_hidden_layers": 6} | changes).mixture.layers

    assert layers() == (0, 1, 2, 3, 4, 5)
    assert layers(mlp_only_layers=[0, 3]) == (1, 2, 4, 5)
    assert layers(decoder_sparse_step=2) == (1, 3, 5)
    assert shape_of(QWEN3_4B).mixture is None and not shape_of(QWEN3_4B).has_experts(0)


def test_both_spellings_of_the_number_of_experts_give_one_shape():
    other = _without(QWEN3_30B_A3B, "num_experts") | {"num_local_experts": 128}
    assert shape_of(other) == shape_of(QWEN3_30B_A3B)


def test_forward_flops_count_the_experts_that_a_token_takes():
    small = {"num_hidden_layers": 3, "mlp_only_layers": [1], "intermediate_size": 5}
    mixed = shape_of(QWEN3_30B_A3B | small)
    dense = shape_of(_without(QWEN3_4B, "head_dim") | small | {"intermediate_size": 1})
    per_width = 6 * 4 * 2560
    rest = forward_flops(dense, 4) - per_width * 3
    assert forward_flops(mixed, 4) == rest + per_width * (5 + 2 * 8 * 768)


def test_a_mixture_without_its_sizes_is_refused():
    with pytest.raises(ConfigError, match="lacks num_experts, num_experts_per_tok"):
        shape_of(_without(QWEN3_30B_A3B, "num_experts", "num_experts_per_tok"))
    with pytest.raises(ConfigError, match="there are 128 experts to choose from"):
        shape_of(QWEN3_30B_A3B | {"num_experts_per_tok": 129})


def test_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="'gpt2' is not implemented; known are llama, qwen2, qwen2_moe, qwen3"
    ):
        shape_of(QWEN3_4B | {"model_type": "gpt2"})


def test_missing_sizes_are_reported_together():
    with pytest.raises(ConfigError, match="lacks vocab_size, hidden_size"):
        shape_of(_without(QWEN3_4B, "hidden_size", "vocab_size"))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"partial_rotary_factor": 0.5},
        {"attention_dropout": 0.1},
        {"quantization_config": {"quant_method": "fp8"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}},
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 30},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4096},
    ],
)
def test_a_setting_that_is_not_honoured_is_refused_by_name(change):
    with pytest.raises(ConfigError) as caught:
        shape_of(QWEN3_4B | change)
    named = set(change) | {
        str(value["rope_type"]) for value in change.values() if "rope" in str(value)
    }
    assert any(name in str(caught.value) for name in named)


def test_all_refusals_come_at_once():
    with pytest.raises(ConfigError) as caught:
        shape_of(QWEN3_4B | {"hidden_act": "gelu", "attention_bias": True})
    assert len(caught.value.failures) == 2


def test_a_window_that_no_layer_has_is_no_reason_to_refuse():
    shape_of(QWEN3_4B | {"use_sliding_window": True, "sliding_window": 4096})
    shape_of(QWEN3_4B | {"sliding_window": 131072})


def test_end_tokens_come_from_both_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_4B | {"eos_token_id": 7}))
    assert read_shape(tmp_path).eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7, 8]}))
    assert read_shape(tmp_path).eos_token_ids == (9, 7, 8)


def test_a_folder_without_config_says_what_is_wanted(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_shape(tmp_path)


def test_auto_dtype_follows_the_device():
    assert str(dtype_of("auto", "cpu")) == "torch.float32"
    assert str(dtype_of("auto", "cuda")) == "torch.bfloat16"
    assert str(dtype_of("bf16", "cpu")) == "torch.bfloat16"
