"""References that follow, earlier policies, teachers, the user's own loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.algo import Hooks
from tandem.algo.dialect import response_logprobs

TWO_STEPS = {"global_batch_size": 4}


def weights_of(decoder):
    return {name: p.detach().clone() for name, p in decoder.named_parameters()}


def are_equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_reference_follows_every_so_many_rollouts(
    make_trainer, make_decoder, make_groups, learn, tmp_path
):
    algo = {"use_kl_loss": True, "kl_loss_coef": 0.1, "ref_update_interval": 2}

    def fresh():
        return make_trainer(algo=algo, reference=make_decoder())

    whole, first, resumed = fresh(), fresh(), fresh()
    begin = weights_of(whole._reference.parts[0])
    learn(whole, make_groups(seed=0))
    assert are_equal(begin, weights_of(whole._reference.parts[0]))
    learn(whole, make_groups(seed=1))
    assert are_equal(weights_of(whole._model.parts[0]), weights_of(whole._reference.parts[0]))
    row = learn(whole, make_groups(seed=2)).rows[0]
    assert row["kl_loss"] == 0.0, "the policy is its reference again"
    for seed in range(3):
        learn(first, make_groups(seed=seed))
    first.save(tmp_path, 2, {})
    resumed.load(tmp_path)
    for trainer in (whole, resumed):
        learn(trainer, make_groups(seed=3))
    assert resumed.state_digest() == whole.state_digest()
    assert are_equal(weights_of(whole._model.parts[0]), weights_of(resumed._reference.parts[0]))


def written_by(groups, *versions):
    """The groups as if their tokens were written by these versions, in turn."""
    return [
        replace(
            group,
            samples=tuple(
                replace(
                    sample,
                    version_T=np.where(
                        sample.sampled_T, np.resize(versions, sample.num_tokens), -1
                    ).astype(np.int32),
                )
                for sample in group.samples
            ),
        )
        for group in groups
    ]


def test_old_logprobs_are_those_of_the_policy_that_wrote_each_token(
    make_trainer, make_groups, learn
):
    trainer = make_trainer(algo={"keep_old_actor": True}, batch=TWO_STEPS, optim={"lr": 1e-2})
    plain = make_trainer(batch=TWO_STEPS, optim={"lr": 1e-2})
    columns = {}
    for version in (0, 1):
        for one in (trainer, plain):
            one.weights(version)
        columns[version] = [group.old_logprobs for group in plain.annotate(make_groups())]
        if version == 0:
            for one in (trainer, plain):
                learn(one, written_by(make_groups(seed=4), 0))
    mixed = trainer.annotate(written_by(make_groups(), 0, 1))
    for place, group in enumerate(mixed):
        for nth, sample in enumerate(group.samples):
            for t in np.flatnonzero(sample.sampled_T):
                wanted = columns[int(sample.version_T[t])][place][nth][t]
                assert group.old_logprobs[nth][t] == wanted
    assert columns[0][0][0][-1] != columns[1][0][0][-1]


def test_on_policy_the_kept_actor_is_the_policy(make_trainer, make_groups, learn):
    kept = make_trainer(algo={"keep_old_actor": True}, batch=TWO_STEPS)
    plain = make_trainer(batch=TWO_STEPS)
    for version in range(3):
        kept.weights(version)
        groups = written_by(make_groups(seed=version), version)
        assert learn(kept, groups).rows == learn(plain, groups).rows


def test_versions_older_than_any_copy_take_the_oldest(make_trainer, make_groups, learn):
    trainer = make_trainer(algo={"keep_old_actor": True})
    trainer.weights(3)
    by_three = trainer.annotate(written_by(make_groups(), 3))
    by_one = trainer.annotate(written_by(make_groups(), 1))
    for a, b in zip(by_three, by_one, strict=True):
        assert all(map(np.array_equal, a.old_logprobs, b.old_logprobs))


def test_distillation_draws_the_policy_to_its_teacher(make_trainer, make_decoder, make_groups,
                                                      learn):  # fmt: skip
    algo = {
        "use_opd": True, "opd_type": "megatron", "disable_rewards_normalization": True,
    }  # fmt: skip
    trainer = make_trainer(algo=algo, teacher=make_decoder(seed=3), optim={"lr": 3e-3})
    flat = [
        replace(group, samples=tuple(replace(one, reward=0.0) for one in group.samples))
        for group in make_groups()
    ]
    gaps = [abs(learn(trainer, flat).rows[0]["opd_reverse_kl"]) for _ in range(8)]
    assert gaps[-1] < gaps[0] / 2


def test_a_teacher_that_is_the_policy_teaches_nothing(make_trainer, make_decoder, make_groups,
                                                      learn):  # fmt: skip
    algo = {"use_opd": True, "opd_type": "megatron", "disable_rewards_normalization": True}
    trainer = make_trainer(algo=algo, teacher=make_decoder(), optim={"weight_decay": 0.0})
    flat = [
        replace(group, samples=tuple(replace(one, reward=0.0) for one in group.samples))
        for group in make_groups()
    ]
    (row,) = learn(trainer, flat).rows
    assert row["opd_reverse_kl"] == row["grad_norm"] == 0.0


def grpo_by_hand(args, batch, logits, sum_of_sample_mean):
    """The policy gradient with old log-probs, as a user would write it from logits."""
    lp = torch.cat(response_logprobs(batch, logits, temperature=args))
    ratio = (lp - torch.cat(batch["log_probs"])).exp()
    a = torch.cat(batch["advantages"])
    value = sum_of_sample_mean(torch.maximum(-ratio * a, -ratio.clamp(0.8, 1.2) * a))
    return value, {"mine": value}


@pytest.mark.parametrize("is_per_token", [False, True])
def test_a_custom_loss_that_is_grpo_takes_the_same_steps(
    make_trainer, make_groups, learn, is_per_token
):
    shared = {"batch": TWO_STEPS, "temperature": 0.7, "step_size": 4}
    per_token = {"calculate_per_token_loss": is_per_token}
    ours = make_trainer(algo=per_token, **shared)
    algo = {**per_token, "loss_type": "custom_loss", "custom_loss_function_path": "grpo_by_hand"}
    custom = make_trainer(algo=algo, hooks=Hooks(args=0.7, loss=grpo_by_hand), **shared)
    rows = [learn(trainer, make_groups()).rows for trainer in (ours, custom)]
    for mine, theirs in zip(*rows, strict=True):
        assert theirs["loss"] == pytest.approx(mine["pg_loss"], rel=1e-4, abs=1e-7)
        assert theirs["mine"] == pytest.approx(mine["pg_loss"], rel=1e-4, abs=1e-7)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
