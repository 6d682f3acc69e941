"""Every old spelling has one of four fates; none is dropped silently."""

from pathlib import Path

import pytest

from tandem.config import check_expectations, read_config
from tandem.config.fields import flag_of, knobs
from tandem.config.legacy import Mapped, old_flags
from tandem.config.parse import known_flags, parse
from tandem.config.shapes import mismatches
from tandem.errors import ConfigError

HERE = Path(__file__).parent
FLAGS = (HERE / "flags.txt").read_text().splitlines()
DIALECT = (HERE / "dialect.txt").read_text().splitlines()
IN_ONE_PROCESS = (
    "--actor-num-gpus-per-node=1",
    "--tensor-model-parallel-size=1",
    "--rollout-num-gpus-per-engine=1",
)

QWEN3_4B = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "vocab_size": 151936,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
}


def test_the_list_of_flags_is_frozen():
    assert sorted(known_flags()) == FLAGS


@pytest.mark.parametrize("line", DIALECT)
def test_every_flag_of_the_dialect_is_understood(line):
    failures = parse(line.split()).failures
    assert all("cannot be read: No such file" in failure for failure in failures)


@pytest.mark.parametrize("line", DIALECT)
def test_every_flag_of_the_dialect_takes_effect_or_is_spoken_of(line, read):
    """A value, an expectation, a remark, a refusal: something must come of it."""
    cfg, failures = read(line)
    flag = line.split()[0]
    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    is_set = name in cfg.origins or flag.removeprefix("--").replace("-", "_") in cfg.origins
    is_kept = flag in cfg.expectations
    is_said = any(flag in text for text in (*cfg.notes, *failures))
    is_passed_on = flag.removeprefix("--sglang-") in cfg.passthrough.sglang
    assert is_set or is_kept or is_said or is_passed_on


def test_no_old_spelling_is_also_a_setting():
    assert not {flag_of(name) for name in knobs()} & set(old_flags())


def test_what_an_old_spelling_maps_to_exists():
    fates = [old.fate for old in old_flags().values() if isinstance(old.fate, Mapped)]
    assert fates
    assert {fate.field for fate in fates} <= set(knobs())


def test_the_launch_on_eight_devices_passes(launch):
    cfg, failures = read_config(launch)
    assert failures == ()
    assert cfg.data.n_samples_per_prompt == 8
    assert cfg.cluster.runtime == "ray" and cfg.cluster.rollout_num_gpus == 8
    assert cfg.cluster.rollout_num_gpus_per_engine == 2


def test_the_launch_in_one_process_passes(launch):
    cfg, failures = read_config([*launch, *IN_ONE_PROCESS])
    assert failures == ()
    assert cfg.cluster.runtime == "local" and cfg.cluster.colocate
    assert cfg.eval.eval_sets[0].name == "aime"
    assert cfg.eval.eval_sets[0].max_response_len == 16384
    assert cfg.engine.sglang_mem_fraction_static == 0.7
    assert cfg.passthrough.sglang == {"mem-fraction-static": ("0.7",)}
    assert any("--colocate" in note for note in cfg.notes)


def test_the_launch_describes_its_checkpoint(launch):
    cfg, _ = read_config(launch)
    check_expectations(cfg.expectations, QWEN3_4B)
    newer = {k: v for k, v in QWEN3_4B.items() if k != "rope_theta"}
    check_expectations(cfg.expectations, newer | {"rope_parameters": {"rope_theta": 1e6}})


def test_all_mismatches_come_at_once(launch):
    cfg, _ = read_config(launch)
    other = QWEN3_4B | {
        "num_hidden_layers": 28,
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "model_type": "qwen2",
    }
    with pytest.raises(ConfigError) as error:
        check_expectations(cfg.expectations, other)
    found = "\n".join(error.value.failures)
    assert len(error.value.failures) == 5
    assert "--num-layers 36 does not match the checkpoint" in found
    assert "num_hidden_layers = 28" in found
    assert "--rotary-base 1000000.0" in found
    assert "--norm-epsilon" in found
    assert "no --untie-embeddings-and-output-weights" in found
    assert "--qk-layernorm" in found


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ({"--hidden-size": 1}, {}),
        ({"--ffn-hidden-size": 1}, {}),
        ({"--num-attention-heads": 1}, {}),
        ({"--num-query-groups": 1}, {}),
        ({"--kv-channels": 64}, {}),
        ({"--kv-channels": 128}, {"head_dim": None}),
        ({"--vocab-size": 1}, {}),
        ({"--normalization": "LayerNorm"}, {}),
        ({"--rotary-percent": 0.5}, {}),
        ({"--use-rope-scaling": True}, {}),
        (
            {"--rotary-scaling-factor": 8.0},
            {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
        ),
        ({"--add-qkv-bias": True}, {}),
        ({"--disable-bias-linear": True}, {"mlp_bias": True}),
        ({"--swiglu": True}, {"hidden_act": "gelu"}),
        ({"--untie-embeddings-and-output-weights": True}, {}),
    ],
)
def test_each_model_flag_is_compared(flags, changed):
    (found,) = mismatches(flags, QWEN3_4B | changed)
    assert next(iter(flags)) in found


def test_what_the_checkpoint_does_not_say_is_not_compared():
    assert (
        list(mismatches({"--vocab-size": 5, "--qk-layernorm": True}, {"model_type": "new"})) == []
    )


def test_width_of_dense_layers_is_not_compared_where_all_are_experts():
    assert list(mismatches({"--ffn-hidden-size": 5}, QWEN3_4B | {"num_experts": 8})) == []


QWEN3_30B_A3B = QWEN3_4B | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 6,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "mlp_only_layers": [0],
    "decoder_sparse_step": 1,
}


@pytest.mark.parametrize(
    ("flag", "right", "wrong"),
    [
        ("--num-experts", 128, 64),
        ("--moe-ffn-hidden-size", 768, 512),
        ("--moe-router-topk", 8, 2),
        ("--moe-router-score-function", "softmax", "sigmoid"),
        ("--moe-layer-freq", "[0]*1+[1]*5", "1"),
        ("--moe-layer-freq", "[0,1,1,1,1,1]", "([0]*2+[1]*4)"),
        ("--moe-layer-freq", "[0]+[1]*5", "every other"),
    ],
)
def test_experts_are_compared_with_the_checkpoint(flag, right, wrong):
    assert list(mismatches({flag: right}, QWEN3_30B_A3B)) == []
    assert [line.split()[0] for line in mismatches({flag: wrong}, QWEN3_30B_A3B)] == [flag]


@pytest.mark.parametrize(
    "flag",
    ["--moe-router-pre-softmax", "--moe-router-enable-expert-bias", "--moe-shared-expert-gate"],
)
def test_what_routers_do_is_compared_with_the_checkpoint(flag):
    assert [line.split()[0] for line in mismatches({flag: True}, QWEN3_30B_A3B)] == [flag]
    other = QWEN3_30B_A3B | {"norm_topk_prob": False, "model_type": "qwen2_moe"}
    is_other = flag != "--moe-router-enable-expert-bias"
    assert (list(mismatches({flag: True}, other)) == []) is is_other


def test_a_dense_checkpoint_has_no_experts():
    (said,) = mismatches({"--num-experts": 8, "--moe-layer-freq": "1"}, QWEN3_4B)
    assert "num_experts = 0" in said


def test_without_model_flags_nothing_is_compared():
    assert list(mismatches({}, QWEN3_4B | {"tie_word_embeddings": False})) == []


def test_a_value_that_would_change_something_is_refused(read):
    _, failures = read("--attention-dropout 0.1 --train-backend fsdp")
    assert any("--attention-dropout 0.1" in f and "set 0" in f for f in failures)
    assert any("--train-backend fsdp" in f for f in failures)


def test_flags_that_share_a_reason_are_said_in_one_line(read):
    _, failures = read("--q-lora-rank 8 --kv-lora-rank 2")
    assert failures == ("--q-lora-rank 8, --kv-lora-rank 2: not yet: latent attention",)
