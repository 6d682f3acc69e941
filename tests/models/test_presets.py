"""The model flags of `scripts/models/*.sh` describe the published models."""

import subprocess
from pathlib import Path

import pytest

from tandem.config import check_expectations
from tandem.config.parse import parse
from tandem.models.shape import num_parameters, shape_of

FOLDER = Path(__file__).parents[2] / "scripts" / "models"

NUM_PARAMETERS = {
    "qwen3-0.6B": 596_049_920,
    "qwen3-1.7B": 1_720_574_976,
    "qwen3-4B": 4_022_468_096,
    "qwen3-4B-Instruct-2507": 4_022_468_096,
    "qwen3-4B-Thinking-2507": 4_022_468_096,
    "qwen3-8B": 8_190_735_360,
    "qwen3-14B": 14_768_307_200,
    "qwen3-32B": 32_762_123_264,
    "qwen3-30B-A3B": 30_532_122_624,
    "qwen2.5-0.5B": 494_032_768,
    "qwen2.5-1.5B": 1_543_714_304,
    "qwen2.5-3B": 3_085_938_688,
    "qwen2.5-7B": 7_615_616_512,
    "llama3.1-8B": 8_030_261_248,
    "llama3.2-1B": 1_235_814_400,
    "llama3.2-3B": 3_212_749_824,
}
"""The parameters of the published models; a tied head counts once."""


def _flags(name: str) -> list[str]:
    script = 'set -euo pipefail; source "$1"; printf "%s\\n" "${MODEL_ARGS[@]}"'
    command = ["bash", "-c", script, "bash", str(FOLDER / f"{name}.sh")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[
        :-1
    ]


def _config(name: str, told: dict) -> dict:
    """A config.json with these sizes, in the spelling of the family."""
    config = {
        "model_type": {"qwen3": "qwen3", "qwen2": "qwen2", "llama": "llama"}[name[:5]],
        "num_hidden_layers": told["--num-layers"],
        "hidden_size": told["--hidden-size"],
        "intermediate_size": told["--ffn-hidden-size"],
        "num_attention_heads": told["--num-attention-heads"],
        "num_key_value_heads": told["--num-query-groups"],
        "vocab_size": told["--vocab-size"],
        "rms_norm_eps": told["--norm-epsilon"],
        "rope_theta": told["--rotary-base"],
        "hidden_act": "silu",
        "tie_word_embeddings": "--untie-embeddings-and-output-weights" not in told,
        "max_position_embeddings": 32768,
    }
    if "--num-experts" in told:
        config |= {
            "model_type": "qwen3_moe",
            "num_experts": told["--num-experts"],
            "num_experts_per_tok": told["--moe-router-topk"],
            "moe_intermediate_size": told["--moe-ffn-hidden-size"],
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        }
    if "--kv-channels" in told:
        config["head_dim"] = told["--kv-channels"]
    if "--use-rope-scaling" in told:
        config["rope_scaling"] = {"rope_type": "llama3", "factor": told["--rotary-scaling-factor"]}
    return config


def test_every_preset_is_checked_here():
    assert {path.stem for path in FOLDER.glob("*.sh")} == set(NUM_PARAMETERS)


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_a_preset_is_accepted_and_has_the_published_number_of_parameters(name):
    given = parse(_flags(name))
    assert not given.failures
    assert not given.refused
    config = _config(name, given.expectations)
    check_expectations(given.expectations, config)
    assert num_parameters(shape_of(config)) == NUM_PARAMETERS[name]


def test_the_bases_of_the_angles_are_those_of_the_models():
    bases = {name: parse(_flags(name)).expectations["--rotary-base"] for name in NUM_PARAMETERS}
    assert bases.pop("qwen3-4B-Instruct-2507") == bases.pop("qwen3-4B-Thinking-2507") == 5e6
    assert {base for name, base in bases.items() if name.startswith("qwen")} == {1e6}
    assert {base for name, base in bases.items() if name.startswith("llama")} == {5e5}
