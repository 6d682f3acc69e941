"""Command lines of servers, and the settings behind them."""

import sys
from dataclasses import replace

import pytest

from tandem.config.load import read_config
from tandem.engine.sglang.flags import (
    ServerPlan,
    check_flags,
    graph_flags,
    installed_flags,
    known_flags,
)
from tandem.engine.sglang.ports import MEETING, Ports
from tandem.errors import ConfigError
from tandem.rollout import EvaluationSet
from tandem.runtime.servers import largest_batch

SOURCE = '''
class Other:
    not_a_flag: int = 0

class ServerArgs:
    """Words."""

    model_path: A[str, Arg(help="a", aliases=["--model"])]
    cuda_graph_bs: A[Optional[List[int]], "sizes"] = None
    tp_size: A[int, Arg(aliases=["--tensor-parallel-size", "--tp-size"])] = 1

    def add_cli_args(parser):
        local: int = 3
        parser.add_argument("--enable-old-thing", action="store_true")

class After:
    also_not: int = 0
'''

PLAN = ServerPlan(
    python="python3",
    model="a/model",
    dtype="bfloat16",
    seed=42,
    first_gpu=2,
    num_gpus=4,
    is_cpu=False,
    gives_memory_back=True,
    is_deterministic=False,
    flags={},
)
SMALL = "--hf-checkpoint m --prompt-data p.jsonl --num-rollout 1 --rollout-batch-size 1 "
SMALL += "--rollout-max-response-len 8 --rollout-engine sglang"


def words_of(**changes):
    with Ports() as ports:
        return replace(PLAN, **changes).words(ports), ports.first


def after(words, flag):
    return words[words.index(flag) + 1]


def settings(line):
    return read_config([*SMALL.split(), *line.split()])


def test_a_server_is_told_its_place_and_reads_no_weights():
    words, first = words_of()
    assert words[:3] == ["python3", "-m", "sglang.launch_server"]
    assert after(words, "--port") == str(first + 1)
    assert (after(words, "--tp-size"), after(words, "--base-gpu-id")) == ("4", "2")
    assert after(words, "--load-format") == "dummy"
    assert "--enable-memory-saver" in words


def test_the_users_flags_are_passed_on_and_win():
    given = {"cuda-graph-bs": ("1", "2", "4"), "dtype": ("float16",), "enable-metrics": ()}
    words, _ = words_of(flags=given)
    at = words.index("--cuda-graph-bs")
    assert words[at + 1 : at + 4] == ["1", "2", "4"]
    assert words.count("--dtype") == 1 and after(words, "--dtype") == "float16"
    assert "--enable-metrics" in words


def test_deterministic_mode_is_that_of_the_server_too():
    assert "--enable-deterministic-inference" in words_of(is_deterministic=True)[0]
    assert "--enable-deterministic-inference" not in words_of()[0]


def test_pipeline_stages_of_an_engine_share_its_devices():
    words, _ = words_of(flags={"pp-size": ("2",)})
    assert after(words, "--tp-size") == "2"
    line = "--sglang-pp-size 2 --rollout-num-gpus 2 --rollout-num-gpus-per-engine 2 --colocate"
    assert settings(line)[1] == ()


def test_an_engine_of_several_nodes_is_told_where_the_first_one_is():
    words, first = words_of(num_nodes=2)
    assert after(words, "--dist-init-addr") == f"127.0.0.1:{first + MEETING}"
    words, _ = words_of(num_nodes=2, node=1, head="10.0.0.1:15005")
    assert after(words, "--nnodes") == "2" and after(words, "--node-rank") == "1"
    assert after(words, "--dist-init-addr") == "10.0.0.1:15005"


def test_a_server_on_the_cpu_gets_what_it_needs_unless_told_otherwise():
    words, _ = words_of(is_cpu=True, flags={"max-total-tokens": ("99",)})
    assert after(words, "--device") == "cpu" and "--base-gpu-id" not in words
    assert after(words, "--attention-backend") == "torch_native"
    assert after(words, "--max-total-tokens") == "99"


def test_flags_are_read_from_the_source_of_the_server():
    wanted = {"model-path", "model", "cuda-graph-bs", "tp-size", "tensor-parallel-size"}
    assert known_flags(SOURCE) == {*wanted, "enable-old-thing"}


def test_a_flag_that_the_installed_server_does_not_have_is_refused(tmp_path):
    package = tmp_path / "sglang" / "srt"
    package.mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").write_text("raise SystemExit('not to be imported')")
    (package / "server_args.py").write_text(SOURCE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    known = installed_flags(str(python))
    check_flags(["cuda-graph-bs"], known)
    with pytest.raises(ConfigError, match="did you mean --sglang-cuda-graph-bs"):
        check_flags(["cuda-graph-bz"], known)


def test_no_flags_are_known_where_the_server_is_not_installed():
    assert installed_flags(sys.executable) is None


def test_graphs_are_those_of_the_batches_that_will_be_decoded():
    new = {"cuda-graph-max-bs", "cuda-graph-max-bs-decode", "cuda-graph-backend-prefill"}
    assert graph_flags([], new, 48) == {
        "cuda-graph-max-bs-decode": ("48",),
        "cuda-graph-backend-prefill": ("disabled",),
    }
    old = {"cuda-graph-max-bs", "disable-piecewise-cuda-graph"}
    assert graph_flags([], old, 48) == {
        "cuda-graph-max-bs": ("48",),
        "disable-piecewise-cuda-graph": (),
    }


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("cuda-graph-bs", {"cuda-graph-backend-prefill"}),
        ("cuda-graph-max-bs-prefill", {"cuda-graph-max-bs"}),
        ("enforce-piecewise-cuda-graph", {"cuda-graph-max-bs"}),
        ("disable-cuda-graph", set()),
        ("cuda-graph-config", set()),
    ],
)
def test_graphs_that_the_user_speaks_of_are_the_users(given, left):
    known = {"cuda-graph-max-bs", "cuda-graph-backend-prefill"}
    assert set(graph_flags([given, "mem-fraction-static"], known, 8)) == left


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        # 32 prompts of 8 samples over 6 engines: 6 groups at most
        ("--rollout-num-gpus 6", 48),
        ("--rollout-num-gpus 6 --over-sampling-batch-size 64", 88),
        ("--rollout-num-gpus 6 --sglang-server-concurrency 20", 20),
        ("--rollout-num-gpus 1", 256),
        ("--rollout-num-gpus 6 --custom-generate-function-path a.b", 512),
    ],
)
def test_the_largest_batch_is_what_a_rollout_asks_of_an_engine(words, wanted):
    cfg, failures = settings(f"--rollout-batch-size 32 --n-samples-per-prompt 8 {words}")
    assert failures == ()
    assert largest_batch(cfg, []) == wanted


def test_an_evaluation_may_be_more_than_a_rollout():
    cfg, _ = settings("--rollout-num-gpus 2 --eval-prompt-data a a.jsonl")
    (held_out,) = cfg.eval.eval_sets
    held_out = replace(held_out, n_samples_per_eval_prompt=16)
    assert largest_batch(cfg, [EvaluationSet(cfg=held_out, prompts=[None] * 30)]) == 240


# --- settings


def test_servers_on_other_devices_need_no_other_runtime():
    cfg, failures = settings("--rollout-num-gpus 6 --rollout-num-gpus-per-engine 2")
    assert failures == ()
    assert cfg.cluster.runtime == "local"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--rollout-num-gpus 5 --rollout-num-gpus-per-engine 2", "not a multiple"),
        ("--sglang-router-ip 10.0.0.1", "go together"),
        ("--rollout-top-p 0.9", "not yet: training on a nucleus"),
        ("--actor-num-gpus-per-node 2 --runtime local", "one trainer"),
        ("--actor-num-gpus-per-node 2", "--rollout-num-gpus is required"),
        ("--sglang-tp-size 2", "set by the run itself"),
        ("--sglang-model-path x", "set by the run itself"),
        ("--router-port 8000", "set by the run itself: free ports"),
        ("--router-policy power_of_two", "wants two servers before it starts"),
        ("--sglang-dp-size 2", "not set aside"),
        ("--sglang-pp-size 2", "does not divide --rollout-num-gpus-per-engine 1"),
        (
            "--sglang-pp-size 2 --rollout-num-gpus 2 --rollout-num-gpus-per-engine 2",
            "cannot join a process group",
        ),
    ],
)
def test_what_servers_cannot_do_is_refused(line, wanted):
    _, failures = settings(line)
    assert any(wanted in failure for failure in failures), failures


def test_addresses_of_servers_choose_the_engine():
    words = SMALL.replace("--rollout-engine sglang", "--rollout-external-engine-addrs a:1 b:2")
    cfg, failures = read_config(words.split())
    assert failures == () and cfg.engine.rollout_engine == "sglang"
    _, failures = read_config([*words.split(), "--rollout-engine", "torch"])
    assert any("needs --rollout-engine sglang" in failure for failure in failures)


def test_flags_of_servers_are_not_called_without_effect():
    cfg, failures = settings("--sglang-mem-fraction-static 0.5 --colocate --router-policy random")
    assert failures == ()
    assert not any("sglang" in note or "router" in note for note in cfg.notes), cfg.notes
