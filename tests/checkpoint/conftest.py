"""Tiny Hugging Face folders with random weights, made without transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tandem.checkpoint.names import hugging_face_shapes
from tandem.models.shape import shape_of

torch.set_num_threads(1)

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "float32",
}


@pytest.fixture
def make_folder(tmp_path) -> Callable[..., Path]:
    """Writes a model folder; `dtype` is that of the weights, the rest changes the config."""

    def make(name: str = "model", dtype: torch.dtype = torch.float32, **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = CONFIG | {"dtype": str(dtype).removeprefix("torch.")} | changes
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "README.md").write_text("the card of this very model")
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: torch.randn(size, generator=generator).to(dtype)
            for name, size in hugging_face_shapes(shape_of(config)).items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make
