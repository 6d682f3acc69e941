"""A model of a few thousand weights, by Hugging Face name and in folders."""

import json
from pathlib import Path

import pytest
import torch

from tandem.checkpoint.names import hugging_face_shapes
from tandem.models.shape import read_shape

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
    "eos_token_id": 60,
    "dtype": "bfloat16",
}


class Model:
    """A folder without weights, and weights that fit it."""

    def __init__(self, origin: Path) -> None:
        self.origin = origin
        self._sizes = hugging_face_shapes(read_shape(origin))

    def weights(self, seed: int) -> dict[str, torch.Tensor]:
        made = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(size, generator=made).bfloat16() for name, size in self._sizes.items()
        }


@pytest.fixture
def model(tmp_path) -> Model:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "config.json").write_text(json.dumps(CONFIG))
    return Model(origin)
