"""A mixture of experts through the whole loop: sampled, replayed, learned, resumed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tandem.checkpoint.names import to_hugging_face
from tandem.config import load_config
from tandem.models.build import build_decoder
from tandem.rollout.dump import read
from tandem.runtime import run

EXPERTS = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "mlp_only_layers": [0],
    "decoder_sparse_step": 1,
}
FLAGS = """
    --num-experts 8 --moe-ffn-hidden-size 16 --moe-router-topk 2
    --moe-layer-freq [0]*1+[1]*1 --moe-router-score-function softmax --moe-router-dtype fp32
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --moe-permute-fusion
"""


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    """The tiny model with experts in its second layer."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | EXPERTS))
    decoder = build_decoder(folder / "model", torch.float32, "cpu")
    decoder.layers[1].experts.router.weight.data.mul_(30)  # so that it has its favourites
    named = ((name, p.detach()) for name, p in decoder.named_parameters())
    weights = dict(to_hugging_face(decoder.shape, named))
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    return replace(tiny, folder=folder)


def launch(mixed, folder, *words, num_rollout=2):
    run(load_config(mixed.argv(folder, *FLAGS.split(), *words, num_rollout=num_rollout)))
    with (folder / "metrics.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--use-routing-replay",
        "--use-rollout-routing-replay --partial-rollout --over-sampling-batch-size 6",
        "--moe-aux-loss-coeff 0.01 --deterministic-mode",
    ],
)
def test_a_run_with_experts_learns_and_goes_on_from_its_checkpoint(mixed, tmp_path, words):
    whole = launch(mixed, tmp_path / "whole", *words.split())
    launch(mixed, tmp_path / "parts", *words.split(), num_rollout=1)
    parts = launch(mixed, tmp_path / "parts", *words.split())
    kept = ("train/grad_norm", "train/loss", "train/load_balancing_loss", "rollout/raw_reward")
    last = [
        {key: row[key] for row in rows for key in kept if key in row} for rows in (whole, parts)
    ]
    assert last[0] == last[1] and last[0]["train/grad_norm"] > 0
    assert ("train/load_balancing_loss" in last[0]) == ("--moe-aux-loss-coeff" in words)
    name = "train/train_rollout_logprob_abs_diff"
    assert next(row[name] for row in whole if name in row) < 1e-6


def test_a_dump_says_which_experts_were_taken(mixed, tmp_path):
    dump = tmp_path / "dump_{rollout_id}.pt"
    words = ("--use-rollout-routing-replay", "--save-debug-rollout-data", str(dump))
    launch(mixed, tmp_path / "run", *words, num_rollout=1)
    samples = [s for group in read(tmp_path / "dump_0.pt") for s in group.samples]
    assert samples
    for sample in samples:
        assert sample.experts_TLk.shape == (sample.num_tokens, 1, 2)
        assert (sample.experts_TLk[:-1] >= 0).all() and (sample.experts_TLk[-1] == -1).all()
