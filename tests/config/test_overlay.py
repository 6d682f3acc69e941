"""The YAML overlay wins over the command line, and takes nothing it does not know."""

import pytest

from tandem.config import flat, read_config


@pytest.fixture
def overlay(tmp_path):
    def read(text, line=""):
        path = tmp_path / "over.yaml"
        path.write_text(text)
        return read_config([*line.split(), "--custom-config-path", str(path)])

    return read


def mentions(failures, text):
    return [failure for failure in failures if text in failure]


def test_it_wins_over_the_command_line(overlay):
    cfg, _ = overlay("lr: 1e-4\neps-clip: 0.3", "--lr 1e-6")
    assert (cfg.optim.lr, cfg.algo.eps_clip) == (1e-4, 0.3)
    assert cfg.origins["lr"].startswith("yaml ")


def test_numbers_written_as_text_are_numbers(overlay):
    cfg, failures = overlay("lr: 1e-5\nadam_eps: '1e-9'\nrollout_temperature: 1\nseed: 3.0")
    assert not mentions(failures, "over.yaml")
    assert (cfg.optim.lr, cfg.optim.adam_eps, cfg.debug.seed) == (1e-5, 1e-9, 3)
    assert isinstance(cfg.rollout.rollout_temperature, float)


def test_lists_switches_and_null_are_read(overlay):
    cfg, failures = overlay(
        "rollout_stop: [a, b]\nrollout_stop_token_ids: 7\ncolocate: true\n"
        "eval_interval: null\napply_chat_template_kwargs: {a: 1}",
        "--eval-interval 3",
    )
    assert not mentions(failures, "over.yaml")
    assert cfg.rollout.rollout_stop == ("a", "b")
    assert cfg.rollout.rollout_stop_token_ids == (7,)
    assert cfg.cluster.colocate and cfg.eval.eval_interval is None
    assert cfg.data.apply_chat_template_kwargs == {"a": 1}


def test_the_dialects_opposite_names_are_understood(overlay):
    cfg, _ = overlay("grpo_std_normalization: false\nrewards_normalization: true")
    assert cfg.algo.disable_grpo_std_normalization
    assert not cfg.algo.disable_rewards_normalization


def test_old_names_get_their_fate(overlay):
    cfg, failures = overlay(
        "num_layers: 4\nbf16: true\nfp16: true\nswiglu: false\nrouter_policy: x"
    )
    assert cfg.expectations == {"--num-layers": 4}
    assert cfg.model.dtype == "bf16"
    assert cfg.passthrough.router == {"policy": ("x",)}
    assert mentions(failures, "--fp16: ")


def test_own_names_live_below_custom_and_hooks_see_them(overlay):
    cfg, failures = overlay("custom:\n  depth: 3\n  lr: 5", "--lr 1e-3")
    assert not mentions(failures, "over.yaml")
    assert flat(cfg).depth == 3
    assert flat(cfg).lr == 1e-3  # a setting is not shadowed


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rollout_bach_size: 3", "unknown name rollout_bach_size; did you mean rollout_batch_size"),
        ("rollout_bach_size: 3", "names of your own go below custom:"),
        ("lr: fast", "lr: 'fast': wanted a number"),
        ("lr: [1]", "wanted a number"),
        ("lr: null", "wanted a number"),
        ("seed: true", "wanted a whole number"),
        ("colocate: 1", "wanted true or false"),
        ("grpo_std_normalization: 0", "wanted true or false"),
        ("custom: 3", "custom: wanted"),
        ("- a", "wanted `name: value` lines"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_makes_no_sense_is_an_error(overlay, text, wanted):
    _, failures = overlay(text)
    assert mentions(failures, wanted)


def test_a_file_that_is_not_there_is_an_error():
    _, failures = read_config(["--custom-config-path", "nowhere.yaml"])
    assert mentions(failures, "--custom-config-path nowhere.yaml cannot be read: No such file")
