"""Tiny random models of every family, as transformers builds them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 5,
}

EXPERT_SIZES = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    # layer 1 is dense
    "mlp_only_layers": [1],
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # small, so that the scaling changes what a short test sees
    "original_max_position_embeddings": 16,
}


@pytest.fixture(scope="session")
def make_model() -> Callable:
    """Builds a float32 model of transformers with every parameter random, biases and norms too."""
    import transformers

    kinds = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
        "qwen2_moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    }

    def make(family: str, **changes):
        own = {
            # a head size that is not width / heads
            "qwen3": {
                "head_dim": 16,
                "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
            },
            "qwen2": {},
            "llama": {"rope_parameters": LLAMA3_ROPE},
            "qwen3_moe": EXPERT_SIZES | {"head_dim": 16},
            "qwen2_moe": EXPERT_SIZES
            | {"shared_expert_intermediate_size": 40, "norm_topk_prob": False},
        }[family]
        config_class, model_class = kinds[family]
        config = config_class(**SIZES | own | changes)
        config._attn_implementation = "eager"
        model = model_class(config).eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                middle = 1.0 if parameter.dim() == 1 else 0.0
                parameter.normal_(middle, 0.15, generator=generator)
        return model

    return make


@pytest.fixture
def saved_model(make_model, tmp_path) -> Callable:
    """Builds such a model and saves it; gives the model and its folder."""

    def save(family: str, **changes) -> tuple:
        folder = Path(tmp_path) / family
        model = make_model(family, **changes)
        model.save_pretrained(folder)
        return model, folder

    return save
