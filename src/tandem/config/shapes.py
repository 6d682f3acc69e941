"""Model flags of launch scripts, checked against the checkpoint's config.json."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from tandem.errors import ConfigError

UNKNOWN = object()
"""A checkpoint that does not say; nothing is compared."""

Read = Callable[[Mapping[str, Any]], Any]
"""Takes the parsed config.json and gives what it says of one thing."""

QK_NORM = {"qwen3": True, "qwen3_moe": True, "qwen2": False, "llama": False}
QKV_BIAS = {"qwen3": False, "qwen3_moe": False, "qwen2": True, "llama": False}


@dataclass(frozen=True, slots=True)
class Shape:
    """One model flag: how its value is read, and where the checkpoint says the same."""

    flag: str
    kind: str  # "switch", "int", "float" or "str"
    key: str  # of config.json, as named in a failure
    read: Read


def check_expectations(expected: Mapping[str, Any], hf_config: Mapping[str, Any]) -> None:
    """Passes if the model flags describe this checkpoint; else ConfigError with all mismatches.

    `expected` is `Config.expectations`; `hf_config` the parsed config.json.
    """
    failures = list(mismatches(expected, hf_config))
    if failures:
        raise ConfigError(failures)


def mismatches(expected: Mapping[str, Any], hf_config: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for every model flag that the checkpoint contradicts."""
    if not expected:
        return
    for shape in SHAPES:
        if shape.flag in expected:
            wanted = expected[shape.flag]
        elif shape.flag == UNTIE and "--num-layers" in expected:
            wanted = False  # a script that describes the model says so when it is untied
        else:
            continue
        actual = shape.read(hf_config)
        if shape.flag == LAYERS and actual is not UNKNOWN:
            wanted = _pattern(wanted, len(actual)) or wanted
        if actual is UNKNOWN or _is_same(wanted, actual):
            continue
        told = shape.flag if wanted is True else f"{shape.flag} {wanted}"
        told = f"no {shape.flag}" if wanted is False else told
        found = f"{shape.key} = {hf_config.get(shape.key, actual)}"
        yield (
            f"{told} does not match the checkpoint, whose config.json means {found}; "
            "use the flags of this model, or leave them out: shapes come from the checkpoint"
        )


def _is_same(wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, float) and isinstance(actual, int | float):
        return isclose(wanted, actual, rel_tol=1e-9)
    return bool(wanted == actual)


def _key(*names: str) -> Read:
    """A reader of the first of these keys that is there."""

    def read(hf: Mapping[str, Any]) -> Any:
        return next((hf[name] for name in names if hf.get(name) is not None), UNKNOWN)

    return read


def _of_family(told: Mapping[str, Any], otherwise: Any = UNKNOWN) -> Read:
    """A reader of what is known of a model_type."""
    return lambda hf: told.get(hf.get("model_type", ""), otherwise)


def _feed_forward(hf: Mapping[str, Any]) -> Any:
    if _num_experts(hf) is not UNKNOWN:
        return UNKNOWN  # no dense layer need have this width
    return _key("intermediate_size")(hf)


def _head_size(hf: Mapping[str, Any]) -> Any:
    if hf.get("head_dim") is not None:
        return hf["head_dim"]
    if "hidden_size" in hf and "num_attention_heads" in hf:
        return hf["hidden_size"] // hf["num_attention_heads"]
    return UNKNOWN


def _rope(key: str) -> Read:
    """A reader of a rotary setting, at the top or in `rope_parameters` or `rope_scaling`."""

    def read(hf: Mapping[str, Any]) -> Any:
        for place in (hf, hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}):
            if place.get(key) is not None:
                return place[key]
        return UNKNOWN

    return read


def _has_rope_scaling(hf: Mapping[str, Any]) -> bool:
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    return scaling.get("rope_type", scaling.get("type", "default")) != "default"


def _qkv_bias(hf: Mapping[str, Any]) -> Any:
    if "attention_bias" in hf:
        return bool(hf["attention_bias"])
    return QKV_BIAS.get(hf.get("model_type", ""), UNKNOWN)


def _is_untied(hf: Mapping[str, Any]) -> Any:
    tied = _key("tie_word_embeddings")(hf)
    return tied if tied is UNKNOWN else not tied


def _normalization(hf: Mapping[str, Any]) -> Any:
    if hf.get("rms_norm_eps") is not None:
        return "RMSNorm"
    return "LayerNorm" if hf.get("layer_norm_eps") is not None else UNKNOWN


def _is_gated(hf: Mapping[str, Any]) -> Any:
    return hf["hidden_act"] in ("silu", "swish") if "hidden_act" in hf else UNKNOWN


def _has_no_bias(hf: Mapping[str, Any]) -> Any:
    return not hf["mlp_bias"] if "mlp_bias" in hf else UNKNOWN


def _rotary_share(hf: Mapping[str, Any]) -> Any:
    share = _rope("partial_rotary_factor")(hf)
    return 1.0 if share is UNKNOWN else share


_num_experts = _key("num_experts", "num_local_experts", "n_routed_experts")
_key_heads = _key("num_key_value_heads", "num_attention_heads")
_has_shared_gate = _of_family({"qwen2_moe": True}, otherwise=False)
_has_expert_bias = _of_family({"qwen2_moe": False, "qwen3_moe": False})


def _num_experts_or_none(hf: Mapping[str, Any]) -> Any:
    is_dense = hf.get("model_type") in ("llama", "qwen2", "qwen3")
    return 0 if is_dense and _num_experts(hf) is UNKNOWN else _num_experts(hf)


def _score_function(hf: Mapping[str, Any]) -> Any:
    if _num_experts(hf) is UNKNOWN:
        return UNKNOWN
    is_softmax = hf.get("model_type") in ("qwen2_moe", "qwen3_moe")
    return "softmax" if is_softmax else hf.get("scoring_func", UNKNOWN)


def _is_softmax_first(hf: Mapping[str, Any]) -> Any:
    """Over all experts, so that the weights of those that are taken do not sum to 1."""
    if _score_function(hf) != "softmax" or "norm_topk_prob" not in hf:
        return UNKNOWN
    return not hf["norm_topk_prob"]


def _shared_width(hf: Mapping[str, Any]) -> Any:
    if hf.get("n_shared_experts") is not None:
        return hf["n_shared_experts"] * hf["moe_intermediate_size"]
    return _key("shared_expert_intermediate_size")(hf)


def _expert_layers(hf: Mapping[str, Any]) -> Any:
    """1 for each layer with experts and 0 for each without."""
    if _num_experts(hf) is UNKNOWN or hf.get("num_hidden_layers") is None:
        return UNKNOWN
    if hf.get("first_k_dense_replace") is not None:
        return tuple(int(i >= hf["first_k_dense_replace"]) for i in range(hf["num_hidden_layers"]))
    dense, step = hf.get("mlp_only_layers") or (), hf.get("decoder_sparse_step") or 1
    return tuple(
        int(i not in dense and (i + 1) % step == 0) for i in range(hf["num_hidden_layers"])
    )


def _pattern(text: str, num_layers: int) -> tuple[int, ...] | None:
    """Layers with experts as a script says it: `N` (every N-th, from the first on), or lists as in
    `[0]*3+[1]*45`; None for anything else."""
    text = text.replace(" ", "")
    if text.isdecimal() and int(text):
        return tuple(int(i % int(text) == 0) for i in range(num_layers))
    found: list[int] = []
    for part in text.strip("()").split("+"):
        match = re.fullmatch(r"\(?\[([01](?:,[01])*)\]\)?(?:\*(\d+))?", part)
        if match is None:
            return None
        found += [int(one) for one in match[1].split(",")] * int(match[2] or 1)
    return tuple(found)


UNTIE = "--untie-embeddings-and-output-weights"
LAYERS = "--moe-layer-freq"

SHAPES = (
    Shape("--num-layers", "int", "num_hidden_layers", _key("num_hidden_layers")),
    Shape("--hidden-size", "int", "hidden_size", _key("hidden_size")),
    Shape("--ffn-hidden-size", "int", "intermediate_size", _feed_forward),
    Shape("--num-attention-heads", "int", "num_attention_heads", _key("num_attention_heads")),
    Shape("--num-query-groups", "int", "num_key_value_heads", _key_heads),
    Shape("--kv-channels", "int", "head_dim", _head_size),
    Shape("--vocab-size", "int", "vocab_size", _key("vocab_size")),
    Shape("--norm-epsilon", "float", "rms_norm_eps", _key("rms_norm_eps", "layer_norm_eps")),
    Shape("--normalization", "str", "rms_norm_eps", _normalization),
    Shape("--rotary-base", "float", "rope_theta", _rope("rope_theta")),
    Shape("--rotary-percent", "float", "partial_rotary_factor", _rotary_share),
    Shape("--use-rope-scaling", "switch", "rope_scaling", _has_rope_scaling),
    Shape("--rotary-scaling-factor", "float", "factor", _rope("factor")),
    Shape("--qk-layernorm", "switch", "model_type", _of_family(QK_NORM)),
    Shape("--add-qkv-bias", "switch", "attention_bias", _qkv_bias),
    Shape("--disable-bias-linear", "switch", "mlp_bias", _has_no_bias),
    Shape("--swiglu", "switch", "hidden_act", _is_gated),
    Shape(UNTIE, "switch", "tie_word_embeddings", _is_untied),
    Shape("--num-experts", "int", "num_experts", _num_experts_or_none),
    Shape("--moe-ffn-hidden-size", "int", "moe_intermediate_size", _key("moe_intermediate_size")),
    Shape("--moe-router-topk", "int", "num_experts_per_tok", _key("num_experts_per_tok")),
    Shape("--moe-router-score-function", "str", "model_type", _score_function),
    Shape("--moe-router-pre-softmax", "switch", "norm_topk_prob", _is_softmax_first),
    Shape("--moe-router-topk-scaling-factor", "float", "routed", _key("routed_scaling_factor")),
    Shape("--moe-router-num-groups", "int", "n_group", _key("n_group")),
    Shape("--moe-router-group-topk", "int", "topk_group", _key("topk_group")),
    Shape("--moe-router-enable-expert-bias", "switch", "model_type", _has_expert_bias),
    Shape(LAYERS, "str", "mlp_only_layers", _expert_layers),
    Shape(
        "--moe-shared-expert-intermediate-size",
        "int",
        "shared_expert_intermediate_size",
        _shared_width,
    ),
    Shape("--moe-shared-expert-gate", "switch", "model_type", _has_shared_gate),
)
