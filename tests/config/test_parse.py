"""Words of a command line, and what is said about wrong ones."""

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

from tandem.config import load_config, read_config
from tandem.config.fields import knobs
from tandem.config.parse import parse
from tandem.errors import ConfigError


def values(line: str) -> dict:
    said = parse(line.split())
    assert not said.failures
    return said.values


def failures(line: str) -> list[str]:
    return parse(line.split()).failures


def test_a_value_follows_its_flag_or_an_equals_sign():
    assert values("--lr 1e-5 --seed=7") == {"lr": 1e-5, "seed": 7}


def test_the_last_occurrence_wins():
    assert values("--lr 1e-5 --lr 2e-5 --colocate --no-colocate") == {"lr": 2e-5, "colocate": False}


def test_a_list_takes_all_words_up_to_the_next_flag():
    said = values("--rollout-stop-token-ids 1 2 3 --rollout-stop a b --seed 1")
    assert said == {"rollout_stop_token_ids": (1, 2, 3), "rollout_stop": ("a", "b"), "seed": 1}


def test_a_repeatable_flag_collects():
    said = values("--rollout-sample-hook-path a.b --rollout-sample-hook-path c.d")
    assert said["rollout_sample_hook_path"] == ("a.b", "c.d")


def test_a_negative_number_is_a_value():
    assert values("--rollout-top-k -1 --entropy-coef -1e-3") == {
        "rollout_top_k": -1,
        "entropy_coef": -1e-3,
    }


def test_a_switch_has_three_ways():
    said = values("--offload-train --no-offload-rollout --use-kl-loss=false")
    assert said == {"offload_train": True, "offload_rollout": False, "use_kl_loss": False}


def test_json_is_read():
    said = parse(["--apply-chat-template-kwargs", '{"enable_thinking": false}'])
    assert said.values == {"apply_chat_template_kwargs": {"enable_thinking": False}}


def test_an_empty_value_is_a_value():
    assert parse(["--rollout-stop=", "--wandb-group", ""]).values == {
        "rollout_stop": ("",),
        "wandb_group": "",
    }


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--rollout-bach-size 4", "unknown flag --rollout-bach-size; did you mean --rollout-batch"),
        ("--rollout_batch_size 4", "did you mean --rollout-batch-size"),
        ("--num-layer 4", "did you mean --num-layers"),
        ("--zzzzqqq", "unknown flag --zzzzqqq"),
        ("--lr fast", "--lr fast: wanted a number"),
        ("--seed 1.5", "--seed 1.5: wanted a whole number"),
        ("--seed", "--seed wants a whole number, and nothing follows it"),
        ("--lr --seed 1", "--lr wants a number, and nothing follows it"),
        ("--seed 1 2", "--seed takes one value; '2' is left over"),
        ("--colocate true", "--colocate takes no value; drop 'true'"),
        ("--no-colocate 1", "--no-colocate takes no value"),
        ("--kl-loss-type k9", "--kl-loss-type k9: wanted one of k1, k2, k3, low_var_kl"),
        ("--multimodal-keys [1]", "--multimodal-keys [1]: wanted a JSON object"),
        ("--multimodal-keys {a}", "wanted a JSON object (Expecting property name"),
        ("stray --seed 1", "'stray' belongs to no flag"),
        ("--no-no-save-optim", "unknown flag --no-no-save-optim"),
        ("--no-lr", "unknown flag --no-lr"),
        ("--rollout-stop-token-ids 1 x", "wanted a whole number"),
        ("--num-layers many", "--num-layers many: wanted a whole number"),
    ],
)
def test_what_makes_no_sense_is_named_with_what_was_wanted(line, wanted):
    (failure,) = failures(line)
    assert wanted in failure


def test_words_after_an_unknown_flag_are_not_blamed_too():
    assert len(failures("--unknwon 1 2 3 --seed 1")) == 1


def test_all_failures_come_at_once():
    with pytest.raises(ConfigError) as error:
        load_config(["--lr", "fast", "--unknown-thing", "--fp16", "--eps-clip", "-1"])
    said = "\n".join(error.value.failures)
    for part in (
        "--lr fast",
        "unknown flag --unknown-thing",
        "--fp16: ",
        "--eps-clip -1",
        "--hf-checkpoint is required",
        "--rollout-batch-size is required",
        "--num-rollout is required",
    ):
        assert part in said


def test_a_value_that_cannot_be_read_is_not_called_absent():
    _, said = read_config(["--rollout-batch-size", "many"])
    about = [failure for failure in said if "--rollout-batch-size" in failure]
    assert about == ["--rollout-batch-size many: wanted a whole number"]


def test_flags_of_sglang_are_kept_word_for_word():
    line = "--sglang-cuda-graph-bs 1 2 4 --sglang-x=-1 --sglang-on --router-policy a"
    said = parse(line.split())
    assert said.sglang == {"cuda-graph-bs": ("1", "2", "4"), "x": ("-1",), "on": ()}
    assert said.router == {"policy": ("a",)}


def test_flags_of_sglang_that_the_run_sets_are_refused_with_the_reason():
    said = parse(["--sglang-tp-size", "2", "--sglang-trust-remote-code"])
    assert "--rollout-num-gpus-per-engine" in said.refused["--sglang-tp-size 2"]
    assert "not run" in said.refused["--sglang-trust-remote-code"]


@generated(
    st.lists(
        st.text(max_size=12)
        | st.sampled_from(sorted(knobs())).map(lambda name: "--" + name.replace("_", "-")),
        max_size=8,
    ).filter(lambda words: not any("config" in word for word in words))
)
def test_any_words_give_a_config_or_failures(words):
    cfg, _ = read_config(words)
    assert cfg.origins.keys() <= knobs().keys()
