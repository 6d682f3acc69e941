"""Every algorithm through the whole loop: flags to checkpoint, twice over."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from tandem.config import load_config
from tandem.runtime import run

ROOT = Path(__file__).resolve().parents[2]

LAUNCHES = {
    "gspo": "--advantage-estimator gspo --eps-clip 3e-4 --eps-clip-high 4e-4",
    "cispo": "--advantage-estimator cispo --eps-clip 1 --eps-clip-high 4",
    "rloo": "--advantage-estimator rloo",
    "reinforce": "--advantage-estimator reinforce_plus_plus --normalize-advantages --kl-coef 0.01",
    "baseline": "--advantage-estimator reinforce_plus_plus_baseline --normalize-advantages",
    "ppo": "--advantage-estimator ppo --critic-lr 1e-2 --num-critic-only-steps 1 --lambd 0.95",
    "lora": "--lora-rank 4 --lora-alpha 8 --lora-target-modules q_proj v_proj down_proj",
    "mis": "--use-tis --tis-function mis --tis-level sequence --tis-mode mask --use-rs "
    "--tis-batch-normalize",
    "decoupled": "--use-tis --keep-old-actor --use-opsm",
    "reference": "--ref-update-interval 1",
    "overlong": "--overlong-buffer-len 4 --eps-clip-high 0.28 --calculate-per-token-loss",
}


def rows_of(folder):
    with (folder / "metrics.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


def launch(tiny, folder, *words, num_rollout=2):
    argv = tiny.argv(folder, *words, num_rollout=num_rollout)
    if "--kl-coef" in words or "--loss-type" in words:
        for flag, count in (("--use-kl-loss", 1), ("--kl-loss-coef", 2)):
            place = argv.index(flag)
            del argv[place : place + count]
    run(load_config(argv))
    return rows_of(folder)


@pytest.mark.parametrize("name", sorted(LAUNCHES))
def test_a_launch_learns_and_goes_on_from_its_checkpoint(tiny, tmp_path, name):
    words = LAUNCHES[name].split()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launch(tiny, whole, *words)
    launch(tiny, parts, *words, num_rollout=1)
    launch(tiny, parts, *words, num_rollout=2)
    kept = ("train/grad_norm", "train/loss", "train/critic-value_loss", "rollout/raw_reward")
    last = [{key: row[key] for row in rows_of(one) for key in kept if key in row}
            for one in (whole, parts)]  # fmt: skip
    assert last[0] == last[1] and last[0]["train/grad_norm"] > 0


def test_a_lora_run_leaves_an_adapter_beside_each_checkpoint(tiny, tmp_path):
    launch(tiny, tmp_path, *LAUNCHES["lora"].split())
    for iteration in ("iter_0000000", "iter_0000001"):
        folder = tmp_path / "lora" / iteration
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["target_modules"] == ["q_proj", "v_proj", "down_proj"]
        assert (folder / "adapter_model.safetensors").stat().st_size > 0


def test_a_teachers_checkpoint_teaches(tiny, tmp_path):
    rows = launch(
        tiny, tmp_path, "--use-opd", "--opd-type", "megatron",
        "--opd-teacher-load", str(tiny.folder / "model"),
    )  # fmt: skip
    assert any("train/opd_reverse_kl" in row for row in rows)


HOOKS = """
    import torch

    def advantages(args, rollout_data):
        rollout_data["advantages"] = [
            torch.full((n,), reward - 0.5)
            for reward, n in zip(rollout_data["rewards"], rollout_data["response_lengths"])
        ]

    def post_process(args, samples):
        raw = [sample.get_reward_value(args) for sample in samples]
        return raw, [reward * 2 for reward in raw]

    def reducer(total_lengths, response_lengths, loss_masks, calculate_per_token_loss):
        masks = torch.cat(loss_masks)
        return lambda x: (x * masks).sum() / 100

    def correct(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **more):
        return pg_loss, loss_masks, {"seen": torch.ones_like(pg_loss)}

    def loss(args, batch, logits, sum_of_sample_mean):
        from tandem.algo.dialect import response_logprobs
        lp = torch.cat(response_logprobs(batch, logits, args.rollout_temperature))
        return sum_of_sample_mean(-lp * torch.cat(batch["advantages"])), {}

    def wrong(args):
        pass
"""


@pytest.fixture
def hooks(tmp_path):
    (tmp_path / "my_algorithm.py").write_text(textwrap.dedent(HOOKS))
    sys.path.insert(0, str(tmp_path))
    yield "my_algorithm"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("my_algorithm", None)


@pytest.mark.parametrize(
    "words",
    [
        "--custom-advantage-function-path {}.advantages",
        "--custom-reward-post-process-path {}.post_process",
        "--custom-pg-loss-reducer-function-path {}.reducer",
        "--use-tis --custom-tis-function-path {}.correct",
        "--loss-type custom_loss --custom-loss-function-path {}.loss",
    ],
)
def test_the_users_own_functions_are_called(tiny, tmp_path, hooks, words):
    rows = launch(tiny, tmp_path / "run", *words.format(hooks).split())
    assert max(row.get("train/grad_norm", 0.0) for row in rows) > 0


def test_a_hook_of_another_signature_is_refused_before_any_rollout(tiny, tmp_path, hooks):
    from tandem.errors import HookError

    words = f"--custom-advantage-function-path {hooks}.wrong".split()
    with pytest.raises(HookError, match=r"--custom-advantage-function-path my_algorithm\.wrong"):
        launch(tiny, tmp_path / "run", *words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        "--custom-advantage-function-path own_functions.best_of_the_rest "
        "--custom-pg-loss-reducer-function-path own_functions.constant_length",
        "--loss-type custom_loss --custom-loss-function-path own_functions.likelihood_of_the_good",
        "--use-tis --custom-tis-function-path own_functions.square_root_weights",
    ],
)
def test_the_example_of_own_functions_runs(tiny, tmp_path, monkeypatch, words):
    monkeypatch.syspath_prepend(ROOT / "examples" / "algorithms")
    rows = launch(tiny, tmp_path, *words.split())
    assert max(row.get("train/grad_norm", 0.0) for row in rows) > 0
