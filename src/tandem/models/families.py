"""What sets the families of decoders apart; everything they share is in `decoder.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROPE_TYPES = ("default", "linear", "llama3")
"""The rotary scalings that `kernels.rope.rope_table` knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The differences of one `model_type` of Hugging Face."""

    qkv_bias: bool = False
    qk_norm: bool = False
    head_size: int | None = None  # where the config names none; None: width / heads
    has_window: bool = False  # the config may ask for a sliding window
    has_experts: bool = False  # some layers are a mixture of experts


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "qwen2": Family(qkv_bias=True, has_window=True),
    "qwen2_moe": Family(qkv_bias=True, has_window=True, has_experts=True),
    "qwen3": Family(qk_norm=True, head_size=128, has_window=True),
    "qwen3_moe": Family(qk_norm=True, has_window=True, has_experts=True),
}
"""The known families by `model_type` (Qwen2.5 calls itself qwen2)."""


def refusals(config: Mapping[str, Any], family: Family) -> list[str]:
    """One sentence for each setting of a Hugging Face config that our decoder would not honour."""
    found = [
        f"{name} = {config[name]!r}: {reason}"
        for name, is_wanted, reason in _RULES
        if config.get(name) is not None and not is_wanted(config[name])
    ]
    rope_type = rope_of(config).get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        found.append(f"rope_type = {rope_type!r}: only {', '.join(ROPE_TYPES)} are implemented")
    if family.has_window and _has_active_window(config):
        found.append(
            f"sliding_window = {config.get('sliding_window')!r} is active; only full attention is "
            "implemented (set use_sliding_window to false if you train within the window)"
        )
    return found


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config, old (`rope_theta`, `rope_scaling`) or new
    (`rope_parameters`), as one dictionary with `rope_theta` and `rope_type` in it."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    return rope


def _has_active_window(config: Mapping[str, Any]) -> bool:
    kinds = config.get("layer_types")
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    # layers from max_window_layers on have the window
    return config.get("max_window_layers", 28) < config["num_hidden_layers"]


_RULES = (
    ("hidden_act", lambda value: value == "silu", "only silu is implemented"),
    ("attention_bias", lambda value: not value, "a bias on the attention output is not there"),
    ("mlp_bias", lambda value: not value, "biases in the feed-forward block are not implemented"),
    ("partial_rotary_factor", lambda value: value == 1, "only full rotary is implemented"),
    ("attention_dropout", lambda value: value == 0, "dropout is not implemented"),
    ("quantization_config", lambda value: not value, "quantised weights cannot be trained"),
)
