"""Experts divided over two ranks, with replay of what engines chose, learn as in one process."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tandem.checkpoint.names import to_hugging_face
from tandem.config import load_config
from tandem.models.build import build_decoder
from tandem.runtime import run

EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
REPLAY = "--use-rollout-routing-replay"

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    """The tiny model with experts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | EXPERTS))
    decoder = build_decoder(folder / "model", torch.float32, "cpu")
    named = ((name, p.detach()) for name, p in decoder.named_parameters())
    weights = dict(to_hugging_face(decoder.shape, named))
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    return replace(tiny, folder=folder)


def losses(mixed, folder, words):
    run(load_config(mixed.argv(folder, words)))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("train/loss", "train/grad_norm", "train/kl_loss", "rollout/raw_reward")
    return [row[name] for row in rows for name in kept if name in row]


def test_divided_experts_learn_what_one_process_learns(mixed, tmp_path):
    one = losses(mixed, tmp_path / "one", f"--runtime local {REPLAY}")
    words = f"--actor-num-gpus-per-node 2 --colocate --expert-model-parallel-size 2 {REPLAY}"
    two = losses(mixed, tmp_path / "two", words)
    assert len(one) >= 6 and two == pytest.approx(one, rel=2e-4, abs=2e-6)
