"""A model of a few thousand weights and problems that it can be sampled on in milliseconds."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODEL_SIZE = "--hidden-size 32 --ffn-hidden-size 64 --num-heads 4 --num-key-heads 2 --num-layers 2"
NUM_PROMPTS = 10


@dataclass(frozen=True)
class Tiny:
    """A folder with `model` (Hugging Face), `prompts.jsonl` and `heldout.jsonl`."""

    folder: Path

    def argv(self, run: Path, *more: str, num_rollout: int = 6) -> list[str]:
        """A small run in `run`: 4 prompts x 4 samples, two optimizer steps a rollout."""
        words = f"""
            --hf-checkpoint {self.folder}/model --load {run} --save {run} --save-interval 1
            --prompt-data {self.folder}/prompts.jsonl --input-key prompt --label-key label
            --apply-chat-template --rollout-shuffle --rm-type random --num-rollout {num_rollout}
            --rollout-batch-size 4 --n-samples-per-prompt 4 --rollout-max-response-len 12
            --num-steps-per-rollout 2 --use-dynamic-batch-size --max-tokens-per-gpu 96
            --lr 1e-2 --lr-decay-style cosine --lr-decay-iters 12 --lr-warmup-iters 2
            --use-kl-loss --kl-loss-coef 0.01 --kl-loss-type low_var_kl --progress off
            --eval-prompt-data heldout {self.folder}/heldout.jsonl --eval-interval 2
        """
        return [*words.split(), *more]


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Bits depend on how many threads share a sum, so every run here has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, run_script) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    for name, first in (("prompts", 0), ("heldout", 100)):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"Count from {n} to {n * 7}."}],
                "label": str(n),
            }
            for n in range(first, first + NUM_PROMPTS)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--texts {folder}/prompts.jsonl --out {folder}/model {MODEL_SIZE}"
    done = run_script("examples/small_model.py", *words.split())
    assert done.returncode == 0, done.stderr[-4000:]
    return Tiny(folder)


@pytest.fixture(scope="session")
def run_script(python_with):
    """Runs Python on a file and words; gives the finished process, however it ended."""
    python = python_with("transformers.models.qwen3.modeling_qwen3", "tandem.runtime.local")

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([*python, *words], cwd=ROOT, env=env, text=True, capture_output=True)

    return start


@pytest.fixture
def users_functions(monkeypatch):
    """Users' functions are found by dotted path, from the root of the project and from here."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    for name in [one for one in sys.modules if one.split(".")[0] in ("examples", "spoiled")]:
        del sys.modules[name]
