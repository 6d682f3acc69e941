"""One Ray on this host for all tests here, and a model of a few thousand weights to run on it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL_SIZE = "--hidden-size 32 --ffn-hidden-size 64 --num-heads 4 --num-key-heads 2 --num-layers 2"
NUM_PROMPTS = 10
NUM_CPUS = 4
IMPORTS = (
    "ray._private.workers.default_worker",
    "tandem.runtime.ray.rank",
    "tandem.runtime.ray.engine",
)
"""What Ray's processes here have imported before they are forked, in the first one's environment,
which Ray reads once. No module that makes an actor: Ray draws a number for it, and then all of them
would go on with the same numbers."""


@dataclass(frozen=True)
class Tiny:
    """A folder with `model` (Hugging Face) and `prompts.jsonl`."""

    folder: Path

    def argv(self, run: Path, words: str, *, num_rollout: int = 2) -> list[str]:
        """A small run in `run`: 4 prompts x 4 samples, two optimizer steps a rollout."""
        line = f"""
            --hf-checkpoint {self.folder}/model --run-dir {run} --device cpu
            --prompt-data {self.folder}/prompts.jsonl --input-key prompt --label-key label
            --apply-chat-template --rollout-shuffle --rm-type random --num-rollout {num_rollout}
            --rollout-batch-size 4 --n-samples-per-prompt 4 --rollout-max-response-len 12
            --num-steps-per-rollout 2 --use-dynamic-batch-size --max-tokens-per-gpu 96
            --lr 1e-2 --lr-decay-style cosine --lr-decay-iters 8 --use-kl-loss
            --kl-loss-coef 0.01 --kl-loss-type low_var_kl --progress off
        """
        return [*line.split(), *words.split()]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, python_with) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    rows = [
        {"prompt": [{"role": "user", "content": f"Count to {n * 7}."}], "label": str(n)}
        for n in range(NUM_PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--texts {folder}/prompts.jsonl --out {folder}/model {MODEL_SIZE}"
    command = [
        *python_with("transformers.models.qwen3.modeling_qwen3"),
        "examples/small_model.py",
        *words.split(),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return Tiny(folder)


@pytest.fixture(scope="session")
def cluster(python_with):
    """A Ray on this host that all runs of a process share: it takes seconds to start, and so do
    processes of its own that are not forked."""
    import ray

    from tandem.runtime.ray.cluster import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"py_executable": " ".join(python_with(*IMPORTS))},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def rows_of(tiny, tmp_path_factory):
    """The rows of metrics of a run with these flags."""
    import torch

    from tandem.config import load_config
    from tandem.runtime import run

    torch.set_num_threads(1)

    def rows(words, num_rollout=2, folder=None):
        folder = folder or tmp_path_factory.mktemp("run")
        run(load_config(tiny.argv(folder, words, num_rollout=num_rollout)))
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return rows
