import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.config import check_expectations, check_files
from tandem.config.load import read_config
from tandem.runtime.ray.placement import place

ROOT = Path(__file__).resolve().parents[2]
LAUNCHES = sorted((ROOT / "scripts").glob("run-*.sh"))
SCRIPTS = sorted({*LAUNCHES, *ROOT.glob("scripts/models/*.sh"), *ROOT.glob("examples/**/*.sh")})

ONE_PROCESS = (
    *("--actor-num-gpus-per-node", "1"),
    *("--rollout-num-gpus-per-engine", "1"),
    *("--tensor-model-parallel-size", "1"),
)
"""What a machine with one device is told to set instead."""

FAKE_PYTHON = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def launched_words(script, folder, *words, environment=None):
    """What a launch script hands to `python3`, told by a python3 that only repeats its words."""
    fake = folder / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(script), *words],
        env={
            "PATH": f"{fake.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_script_is_valid_bash_and_ends_no_process_by_name(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert not re.search(r"\b(pkill|killall)\b", text)


@pytest.mark.parametrize("script", LAUNCHES, ids=name_of)
def test_every_flag_of_a_launch_works_or_says_what_one_device_needs_instead(script, tmp_path):
    program, *words = launched_words(script, tmp_path, *ONE_PROCESS)
    assert program == ("train_async.py" if "async" in script.name else "train.py")
    _, failures = read_config(words)
    assert failures == ()


def test_flags_after_the_script_win_and_paths_follow_the_environment(tmp_path):
    script = ROOT / "scripts" / "run-qwen3-4B.sh"
    environment = {"TANDEM_DATA": "/data", "EVAL_DATA": "/held/out.jsonl"}
    _, *words = launched_words(
        script, tmp_path, "--num-rollout", "7", *ONE_PROCESS, environment=environment
    )
    cfg, failures = read_config(words)
    assert failures == ()
    assert cfg.data.num_rollout == 7
    assert cfg.model.hf_checkpoint == "/data/Qwen3-4B"
    assert cfg.checkpoint.load == cfg.checkpoint.save == "/data/Qwen3-4B_run"
    assert [(one.name, one.path) for one in cfg.eval.eval_sets] == [("aime", "/held/out.jsonl")]


HALVED = {
    "run-qwen3-4B-disaggregated.sh": (
        "--actor-num-gpus-per-node 2 --rollout-num-gpus 2 --num-gpus-per-node 4",
        "--actor-num-gpus-per-node 1 --tensor-model-parallel-size 1 --rollout-num-gpus 1",
    ),
    "run-qwen3-4B-sglang.sh": (
        "--actor-num-gpus-per-node 4",
        "--actor-num-gpus-per-node 1 --tensor-model-parallel-size 1 "
        "--rollout-num-gpus-per-engine 1",
    ),
}
HALVED["run-qwen3-4B-async.sh"] = HALVED["run-qwen3-4B-disaggregated.sh"]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The words and the environment that a try with random weights gives to a launch."""
    folder = tmp_path_factory.mktemp("try")
    launch = folder / "launch.sh"
    launch.write_text('printf "%s\\n" "$@"; env -0 > "$(dirname "$0")/env"\n')
    said = launched_words(
        ROOT / "scripts" / "try.sh",
        folder,
        folder / "out",
        launch,
        environment={"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    pairs = (one.partition("=") for one in (folder / "env").read_text().split("\0"))
    names = ("HF_CHECKPOINT", "REF_LOAD", "SAVE", "PROMPT_DATA", "EVAL_DATA")
    return said[said.index("--init") :], {name: it for name, _, it in pairs if name in names}


@pytest.mark.parametrize(
    ("name", "line", "num_gpus"),
    [
        (name, line, num_gpus)
        for name, choices in HALVED.items()
        for line, num_gpus in zip(choices, (4, 2), strict=True)
    ],
)
def test_a_launch_for_eight_gpus_runs_on_fewer_with_the_numbers_halved(
    name, line, num_gpus, tried, tmp_path
):
    words, environment = tried
    script = ROOT / "scripts" / name
    _, *said = launched_words(
        script, tmp_path, *words, *line.split(), environment=environment | {"NUM_GPUS": "8"}
    )
    cfg, failures = read_config(said)
    assert failures == ()
    check_files(cfg)
    described = json.loads(Path(cfg.model.hf_checkpoint, "config.json").read_text())
    check_expectations(cfg.expectations, described)
    wanted = cfg.cluster.num_trainers if "sglang" in name else num_gpus
    assert place(cfg).num_devices == wanted
    assert cfg.engine.rollout_engine == "sglang" and cfg.data.num_rollout == 2
    assert cfg.model.init == "random" and not cfg.algo.has_reference
    assert cfg.cluster.runtime == ("local" if cfg.cluster.num_trainers == 1 else "ray")


@pytest.mark.parametrize(("count", "runtime"), [("1", "local"), ("3", "ray"), ("8", "ray")])
def test_the_launch_chooses_its_runtime_by_the_number_of_gpus(count, runtime, tmp_path):
    script = ROOT / "scripts" / "run-qwen3-4B.sh"
    _, *words = launched_words(script, tmp_path, environment={"NUM_GPUS": count})
    cfg, failures = read_config(words)
    assert failures == ()
    assert cfg.cluster.runtime == runtime and cfg.cluster.num_trainers == int(count)
