"""Who samples where the launch does not say."""

import pytest

from tandem.config.engines import who_samples
from tandem.config.parse import parse
from tandem.config.resolve import resolve


@pytest.fixture
def engine_of(small):
    """The engine of a small run with these flags, and the sentence about it."""

    def engine_of(line="", *, has_sglang=True):
        cfg, _ = resolve(parse(small(line)), has_sglang=has_sglang)
        return cfg.engine.rollout_engine, who_samples(cfg)

    return engine_of


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--sglang-mem-fraction-static 0.7 --sglang-server-concurrency 64",
        "--actor-num-gpus-per-node 8 --colocate --rollout-num-gpus-per-engine 2",
        "--rollout-num-gpus 6 --rollout-num-gpus-per-engine 2",
    ],
)
def test_the_embedded_engine_samples_where_no_flag_is_for_servers_alone(line, engine_of):
    engine, told = engine_of(line)
    assert engine == "torch"
    assert told.startswith("the embedded engine samples") and "none of which" in told


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--sglang-cuda-graph-bs 1 2 4", "--sglang-cuda-graph-bs"),
        ("--router-policy random", "--router-policy"),
        ("--sglang-router-ip 10.0.0.1 --sglang-router-port 9", "--sglang-router-ip"),
        ("--rollout-external-engine-addrs a:1", "--rollout-external-engine-addrs"),
    ],
)
def test_a_flag_that_only_servers_take_starts_them(line, flag, engine_of):
    engine, told = engine_of(line)
    assert engine == "sglang"
    assert told.startswith("SGLang's servers sample") and flag in told


def test_an_interpreter_of_sglangs_own_counts_as_installed(engine_of):
    engine, told = engine_of("--sglang-python /opt/sglang/bin/python", has_sglang=False)
    assert engine == "sglang" and "--sglang-python" in told


def test_without_sglang_its_flags_have_no_effect_and_this_is_said(engine_of):
    engine, told = engine_of("--sglang-cuda-graph-bs 1 2 4", has_sglang=False)
    assert engine == "torch" and "not being installed" in told


def test_what_is_said_wins(engine_of):
    assert engine_of("--rollout-engine torch --sglang-cuda-graph-bs 1")[0] == "torch"
    engine, told = engine_of("--rollout-engine sglang")
    assert engine == "sglang" and "command line" in told


def test_a_run_that_only_learns_starts_no_servers(engine_of):
    assert engine_of("--load-debug-rollout-data d --sglang-cuda-graph-bs 1")[0] == "torch"
