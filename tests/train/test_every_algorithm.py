"""What must hold for each algorithm, whatever its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.algo.estimators import ESTIMATORS
from tandem.config import AlgoConfig
from tandem.packing import columns, scoring_rows
from tandem.train import broken_invariants
from tandem.types import Ending

WHITENED = {"normalize_advantages": True}
ALGORITHMS = {
    **{name: {"advantage_estimator": name} for name in ESTIMATORS},
    "reinforce_plus_plus": {"advantage_estimator": "reinforce_plus_plus", **WHITENED},
    "reinforce_plus_plus_baseline": {
        "advantage_estimator": "reinforce_plus_plus_baseline", **WHITENED,
    },
    "dr_grpo": {"disable_grpo_std_normalization": True, "calculate_per_token_loss": True},
    "dapo": {
        "eps_clip_high": 0.28, "calculate_per_token_loss": True, "overlong_buffer_len": 8,
        "overlong_max_len": 20,
    },
    "dual_clip": {"eps_clip_c": 3.0},
    "opsm": {"use_opsm": True},
    "kl_loss": {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "k3"},
    "unbiased_kl": {
        "use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "low_var_kl",
        "use_unbiased_kl": True,
    },
    "kl_in_reward": {"advantage_estimator": "reinforce_plus_plus", "kl_coef": 0.1, **WHITENED},
    "tis": {"use_tis": True},
    "icepop": {"use_tis": True, "tis_function": "icepop", "tis_clip_low": 0.5},
    "mis": {
        "use_tis": True,
        "tis_function": "mis",
        "tis_level": "geometric",
        "tis_mode": "mask",
        "tis_upper_bound": 50.0,
    },
    "mis_normalised": {"use_tis": True, "tis_function": "mis", "tis_batch_normalize": True},
    "kept_actor": {"keep_old_actor": True},
    "distilled": {"use_opd": True, "opd_type": "megatron"},
}  # fmt: skip


@pytest.fixture(params=sorted(ALGORITHMS))
def algo(request):
    return ALGORITHMS[request.param]


@pytest.fixture
def trainer_of(make_trainer, make_decoder):
    """A trainer of an algorithm, with the models that it wants beside the policy."""

    def build(algo, dtype=torch.float32, **more):
        cfg = AlgoConfig(**algo)
        trainer = make_trainer(
            algo=algo,
            decoder=make_decoder(dtype=dtype),
            reference=make_decoder(dtype=dtype) if cfg.has_reference else None,
            teacher=make_decoder(seed=2, dtype=dtype) if cfg.use_opd else None,
            **more,
        )
        trainer.weights(0)
        return trainer

    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_step_is_on_policy(trainer_of, make_groups, learn, algo, dtype):
    """Ratio 1, nothing clipped, KL 0 to a reference that is the policy; then it moves away."""
    trainer = trainer_of(algo, dtype, batch={"global_batch_size": 4}, step_size=4)
    first, second = learn(trainer, make_groups()).rows
    assert first["ppo_kl"] == first["ppo_kl_abs"] == first["pg_clipfrac"] == 0.0
    assert first.get("kl_loss", 0.0) == 0.0 and first.get("opsm_clipfrac", 0.0) == 0.0
    assert second["ppo_kl_abs"] > 0 and np.isfinite(second["loss"])
    assert broken_invariants(learn(trainer, make_groups(seed=1)), AlgoConfig(**algo), "fp32") == ()


def test_what_it_does_does_not_depend_on_the_packing(trainer_of, make_groups, learn, algo):
    rows = [
        learn(trainer_of(algo, batch=batch, step_size=12), make_groups(3)).rows[0]
        for batch in ({"max_tokens_per_gpu": 24}, {"max_tokens_per_gpu": 4096})
    ]
    assert rows[0] == pytest.approx(rows[1], rel=2e-5, abs=1e-8)


def test_samples_without_verdict_or_token_are_not_trained(trainer_of, make_groups, learn, algo):
    """A row of the world's accidents: no verdict, failure, nothing chosen, one sample, no group."""
    (whole, other) = make_groups()
    missing = replace(whole.samples[0], reward=None)
    failed = replace(whole.samples[1], ending=Ending.ERROR, reward=9.0)
    nothing = replace(whole.samples[2], sampled_T=np.zeros(whole.samples[2].num_tokens, bool))
    mixed = replace(whole, samples=(missing, failed, nothing, whole.samples[3]))
    alone = replace(other, samples=other.samples[:1])
    (row,) = learn(trainer_of(algo), [mixed, alone]).rows
    assert all(np.isfinite(value) for value in row.values())


def test_a_rollout_without_a_verdict_moves_nothing(trainer_of, make_groups, learn, algo):
    (group,) = make_groups(1)
    empty = replace(group, samples=tuple(replace(one, reward=None) for one in group.samples))
    trainer = trainer_of(algo, optim={"weight_decay": 0.0})
    before = trainer.weights(0).digests
    (row,) = learn(trainer, [empty]).rows
    assert row["grad_norm"] == 0.0 and trainer.weights(1).digests == before


GROUP_RELATIVE = ("grpo", "gspo", "cispo", "rloo", "reinforce_plus_plus_baseline", "dr_grpo")


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_equal_rewards_teach_nothing(trainer_of, make_groups, learn, name):
    """Zero variance, where what counts is the difference within a group."""
    flat = [
        replace(group, samples=tuple(replace(one, reward=0.1) for one in group.samples))
        for group in make_groups()
    ]
    trainer = trainer_of(ALGORITHMS[name], optim={"weight_decay": 0.0})
    before = trainer.weights(0).digests
    (row,) = learn(trainer, flat).rows
    assert row["grad_norm"] == 0.0 and trainer.weights(1).digests == before


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"distilled"}))
def test_good_samples_become_likelier_than_bad_ones(trainer_of, make_groups, learn, name):
    """The direction of the step, for every algorithm that learns from rewards alone."""
    (group,) = make_groups(1)
    samples = tuple(
        replace(one, reward=float(place % 2), logprobs_T=np.float32(-3.0) * one.sampled_T)
        for place, one in enumerate(group.samples)
    )
    group = replace(group, samples=samples)
    trainer = trainer_of(ALGORITHMS[name], optim={"lr": 1e-3})
    before = likelihoods(trainer, group)
    for version in range(4):
        trainer.weights(version)
        learn(trainer, [group])
    moved = likelihoods(trainer, group) - before
    assert moved[[1, 3]].mean() > moved[[0, 2]].mean()


def likelihoods(trainer, group):
    """The log-prob of each sample under the policy as it is."""
    learning = trainer._learning
    rows = scoring_rows([group], trainer.layout, learning.batch, learning.algo)
    (column,) = columns([group], rows, trainer._scores(trainer._model, rows))
    return np.array([logprobs_T.sum() for logprobs_T in column])
