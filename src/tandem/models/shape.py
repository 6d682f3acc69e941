"""The sizes of a decoder, read from a Hugging Face `config.json`, and what follows from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.errors import CheckpointError, ConfigError
from tandem.models import mixture as mixtures
from tandem.models.families import FAMILIES, refusals, rope_of
from tandem.models.mixture import Mixture, mixture_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Everything about a decoder but its weights. Letters are those of the legend in `types`."""

    family: str  # the model_type of Hugging Face
    num_layers: int  # L
    width: int  # D
    ffn: int  # F of the layers that have no experts
    num_heads: int  # N
    num_key_heads: int  # K, a divisor of N
    head_size: int  # H
    vocab: int  # V
    eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)  # as rope_table takes
    tied: bool  # the head is the embedding
    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    eos_token_ids: tuple[int, ...] = ()
    mixture: Mixture | None = None  # None: no layer has experts

    def has_experts(self, layer: int) -> bool:
        """Whether this layer's feed-forward block is a mixture of experts."""
        return self.mixture is not None and layer in self.mixture.layers

    @property
    def group_size(self) -> int:
        """Query heads for each key head."""
        return self.num_heads // self.num_key_heads


def read_shape(folder: str | Path) -> Shape:
    """The shape of the model in a Hugging Face folder; end tokens of `generation_config.json`
    come first, those of `config.json` after. Raises CheckpointError, ConfigError."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; a Hugging Face model folder is wanted")
    generation = Path(folder) / "generation_config.json"
    shape_config = _read_json(path)
    return shape_of(shape_config, _read_json(generation) if generation.is_file() else None)


def shape_of(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Shape:
    """The shape that a Hugging Face config describes, in its old or new spelling.

    Raises ConfigError with every missing key and every setting that we would not honour.
    """
    name = config.get("model_type")
    family = FAMILIES.get(str(name))
    if family is None:
        raise ConfigError(
            f"model_type {name!r} is not implemented; known are {', '.join(sorted(FAMILIES))}"
        )
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if family.has_experts:
        missing += mixtures.missing(config)
    if missing:
        raise ConfigError(f"the {name} config lacks {', '.join(missing)}")
    failures = refusals(config, family)
    if family.has_experts:
        failures += mixtures.refusals(config)
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    if heads % key_heads:
        failures.append(f"{heads} attention heads are not a multiple of {key_heads} key heads")
    if failures:
        raise ConfigError([f"this {name} config cannot be run: {failure}" for failure in failures])
    rope = rope_of(config)
    theta = float(rope.pop("rope_theta"))
    return Shape(
        family=str(name),
        num_layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        ffn=config["intermediate_size"],
        num_heads=heads,
        num_key_heads=key_heads,
        head_size=config.get("head_dim") or family.head_size or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=None if rope["rope_type"] == "default" else rope,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        max_positions=config["max_position_embeddings"],
        eos_token_ids=_eos_token_ids(generation or {}, config),
        mixture=mixture_of(config) if family.has_experts else None,
    )


def num_parameters(shape: Shape) -> int:
    """How many numbers the decoder learns; a tied head counts once."""
    head_width = (shape.num_heads + 2 * shape.num_key_heads) * shape.head_size
    layer = shape.width * head_width + shape.num_heads * shape.head_size * shape.width
    layer += head_width * shape.qkv_bias + 2 * shape.head_size * shape.qk_norm + 2 * shape.width
    tables = shape.vocab * shape.width * (1 if shape.tied else 2)
    dense = shape.num_layers
    total = tables + shape.num_layers * layer + shape.width
    if shape.mixture is not None:
        dense -= len(shape.mixture.layers)
        total += len(shape.mixture.layers) * shape.mixture.num_parameters(shape.width)
    return total + dense * 3 * shape.width * shape.ffn


def forward_flops(shape: Shape, length: int) -> int:
    """Floating-point operations of one forward pass over a sequence of `length` tokens.

    The dialect's formula (section 3.10), which prices the attention output as D x D and a mixture
    by the experts that a token takes, without the router, so that balancing and reported TFLOP/s
    compare with its figures; training costs three times as much.
    """
    width, query_width = shape.width, shape.num_heads * shape.head_size
    projections = 2 * length * width * query_width
    projections += 4 * length * width * shape.num_key_heads * shape.head_size
    attention = 2 * query_width * length * length
    attended = shape.num_layers * (projections + attention + 2 * length * width * width)
    widths = shape.num_layers * shape.ffn
    if shape.mixture is not None:
        widths += len(shape.mixture.layers) * (shape.mixture.ffn_per_token() - shape.ffn)
    return attended + 6 * length * width * widths + 2 * length * width * shape.vocab


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def _eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        ids += [value] if isinstance(value, int) else list(value or ())
    return tuple(dict.fromkeys(ids))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value
