import math
import random

import pytest
import torch

from tandem.algo import loss, wanted_columns, wants_entropy
from tandem.algo.kl import kl_estimate
from tandem.algo.policy_loss import policy_loss
from tandem.config import AlgoConfig
from tandem.errors import ConfigError
from tandem.types import Batch

T = 40


def numbers(seed, low=-3.0, high=0.0):
    rng = random.Random(seed)
    return [rng.uniform(low, high) for _ in range(T)]


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


def batch(**columns):
    rng = random.Random(7)
    mask = [float(rng.random() < 0.7) for _ in range(T)]
    weight = [m * rng.uniform(0.001, 0.02) for m in mask]
    return Batch(
        tokens_T=torch.zeros(T, dtype=torch.int64),
        targets_T=torch.zeros(T, dtype=torch.int64),
        positions_T=torch.arange(T),
        mask_T=tensor(mask),
        weight_T=tensor(weight),
        bounds_S=torch.tensor([0, T], dtype=torch.int32),
        longest=T,
        **{name: tensor(values) for name, values in columns.items()},
    )


def expected_kl(kind, lp, ref, ratio=1.0):
    r = lp - ref
    value = {"k1": r, "k2": r * r / 2, "k3": math.exp(-r) - 1 + r}
    value["low_var_kl"] = value["k3"]
    out = value[kind] * ratio
    return min(max(out, -10), 10) if kind == "low_var_kl" else out


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
@pytest.mark.parametrize("is_unbiased", [False, True])
def test_kl_estimates_are_schulmans(kind, is_unbiased):
    lp, ref, old = numbers(1), numbers(2, -9.0), numbers(3)
    ratio = [math.exp(a - b) if is_unbiased else 1.0 for a, b in zip(lp, old, strict=True)]
    got = kl_estimate(tensor(lp), tensor(ref), kind, tensor(ratio) if is_unbiased else None)
    wanted = [expected_kl(kind, a, b, c) for a, b, c in zip(lp, ref, ratio, strict=True)]
    assert got.tolist() == pytest.approx(wanted, rel=2e-5, abs=2e-6)


def test_only_low_var_kl_is_clamped():
    lp, ref = tensor([-9.0]), tensor([-1.0])
    assert kl_estimate(lp, ref, "low_var_kl").item() == 10.0
    assert kl_estimate(lp, ref, "k3").item() == pytest.approx(math.exp(8) - 9)


def test_kl_of_far_policies_has_a_finite_value_and_gradient():
    lp = tensor([-500.0, 0.0]).requires_grad_()
    kl_estimate(lp, tensor([0.0, -500.0]), "low_var_kl").sum().backward()
    assert torch.isfinite(lp.grad).all()


def test_equal_policies_have_zero_kl():
    lp = tensor(numbers(1))
    for kind in ("k1", "k2", "k3", "low_var_kl"):
        assert (kl_estimate(lp, lp, kind) == 0).all()


def test_an_unknown_kl_is_refused():
    with pytest.raises(ConfigError, match="k4 is unknown; use one of: k1, k2, k3, low_var_kl"):
        kl_estimate(tensor([0.0]), tensor([0.0]), "k4")


def expected_policy(lp, old, a, low, high, dual):
    """Loss, gradient by lp, and whether the clip won, for one token."""
    ratio = math.exp(lp - old)
    bound = min(max(ratio, 1 - low), 1 + high)
    plain, clipped = -ratio * a, -bound * a
    value = max(plain, clipped)
    moves = plain >= clipped or bound == ratio
    if dual is not None and a < 0 and -dual * a < value:
        return -dual * a, 0.0, clipped > plain
    return value, -ratio * a if moves else 0.0, clipped > plain


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.4, 1.5)]
)
def test_policy_loss_is_the_clipped_surrogate_and_so_is_its_gradient(low, high, dual):
    lp_values, old, a = numbers(1), numbers(2), numbers(3, -2.0, 2.0)
    lp = tensor(lp_values).requires_grad_()
    got = policy_loss(lp, tensor(old), tensor(a), low=low, high=high, dual=dual)
    got.loss_T.sum().backward()
    wanted = [expected_policy(*row, low, high, dual) for row in zip(lp_values, old, a, strict=True)]
    assert got.loss_T.tolist() == pytest.approx([w[0] for w in wanted], rel=1e-5)
    assert lp.grad.tolist() == pytest.approx([w[1] for w in wanted], rel=1e-5)
    assert got.clipped_T.tolist() == [w[2] for w in wanted]


def test_the_ratio_of_a_hopelessly_stale_sample_stays_finite():
    lp = tensor([0.0]).requires_grad_()
    got = policy_loss(lp, tensor([-300.0]), tensor([-1.0]), low=0.2, high=0.2)
    got.loss_T.sum().backward()
    assert math.isfinite(got.loss_T.item()) and math.isfinite(lp.grad.item())


def weigh(rows, weight):
    return sum(w * x for w, x in zip(weight, rows, strict=True))


def test_the_whole_loss_and_every_metric_are_weighted_sums():
    cfg = AlgoConfig(
        eps_clip_high=0.3, use_kl_loss=True, kl_loss_coef=0.05, kl_loss_type="low_var_kl",
        use_unbiased_kl=True, entropy_coef=0.01,
    )  # fmt: skip
    lp, old, a = numbers(1), numbers(2), numbers(3, -1.0, 1.0)
    ref, engine, entropy = numbers(4), numbers(5), numbers(6, 0.0, 2.0)
    row = batch(
        advantages_T=a, old_logprobs_T=old, reference_logprobs_T=ref, engine_logprobs_T=engine
    )
    value, metrics = loss(row, tensor(lp), tensor(entropy), cfg)
    weight = row.weight_T.tolist()
    policy = [expected_policy(*x, 0.2, 0.3, None) for x in zip(lp, old, a, strict=True)]
    ratio = [math.exp(x - y) for x, y in zip(lp, old, strict=True)]
    kl = [expected_kl("low_var_kl", *x) for x in zip(lp, ref, ratio, strict=True)]
    wanted = {
        "pg_loss": weigh([p[0] for p in policy], weight),
        "pg_clipfrac": weigh([float(p[2]) for p in policy], weight),
        "ppo_kl": weigh([y - x for x, y in zip(lp, old, strict=True)], weight),
        "ppo_kl_abs": weigh([abs(y - x) for x, y in zip(lp, old, strict=True)], weight),
        "ois": weigh(ratio, weight),
        "train_rollout_logprob_abs_diff": weigh(
            [abs(x - y) for x, y in zip(old, engine, strict=True)], weight
        ),
        "entropy_loss": weigh(entropy, weight),
        "kl_loss": weigh(kl, weight),
    }
    wanted["loss"] = wanted["pg_loss"] - 0.01 * wanted["entropy_loss"] + 0.05 * wanted["kl_loss"]
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(wanted, rel=1e-5)
    assert value.item() == metrics["loss"].item()
    assert not any(metric.requires_grad for metric in metrics.values())


def test_without_old_logprobs_the_ratio_is_exactly_one_and_the_gradient_is_the_advantage():
    a = numbers(3, -1.0, 1.0)
    row = batch(advantages_T=a)
    lp = tensor(numbers(1)).requires_grad_()
    value, metrics = loss(row, lp, None, AlgoConfig())
    value.backward()
    assert metrics["ppo_kl"].item() == metrics["ppo_kl_abs"].item() == 0.0
    assert metrics["pg_clipfrac"].item() == 0.0
    assert metrics["ois"].item() == row.weight_T.double().sum().item()
    assert torch.equal(lp.grad, -row.weight_T * tensor(a))
    assert "entropy_loss" not in metrics and "kl_loss" not in metrics


def test_rollout_logprobs_replace_the_old_ones():
    a, engine = numbers(3, -1.0, 1.0), numbers(5)
    row = batch(advantages_T=a, engine_logprobs_T=engine, old_logprobs_T=numbers(2))
    same = batch(advantages_T=a, old_logprobs_T=engine)
    lp = tensor(numbers(1))
    by_engine, _ = loss(row, lp, None, AlgoConfig(use_rollout_logprobs=True))
    by_trainer, _ = loss(same, lp, None, AlgoConfig())
    assert by_engine.item() == by_trainer.item()


def test_kl_at_coefficient_zero_is_reported_and_changes_nothing():
    a, ref = numbers(3, -1.0, 1.0), numbers(4)
    row = batch(advantages_T=a, reference_logprobs_T=ref)
    lp = tensor(numbers(1))
    with_kl, metrics = loss(row, lp, None, AlgoConfig(use_kl_loss=True))
    without, _ = loss(row, lp, None, AlgoConfig())
    assert with_kl.item() == without.item() and metrics["kl_loss"].item() != 0


def test_supervised_loss_is_the_weighted_negative_log_likelihood():
    lp = numbers(1)
    row = batch()
    value, metrics = loss(row, tensor(lp), None, AlgoConfig(loss_type="sft_loss"))
    wanted = -weigh(lp, row.weight_T.tolist())
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    assert set(metrics) == {"loss"}


def test_a_custom_loss_is_not_made_of_logprobs():
    with pytest.raises(ConfigError, match="custom_loss takes logits"):
        loss(batch(), tensor(numbers(1)), None, AlgoConfig(loss_type="custom_loss"))


def test_old_logprobs_are_computed_only_where_the_training_forward_cannot_stand_in():
    assert wanted_columns(AlgoConfig(), num_steps=1) == set()
    assert wanted_columns(AlgoConfig(), num_steps=2) == {"old_logprobs"}
    assert wanted_columns(AlgoConfig(use_rollout_logprobs=True), num_steps=2) == set()
    assert wanted_columns(AlgoConfig(use_kl_loss=True), num_steps=1) == {"reference_logprobs"}
    both = {"old_logprobs", "reference_logprobs"}
    assert wanted_columns(AlgoConfig(kl_coef=0.1), num_steps=1) == both
    supervised = AlgoConfig(loss_type="sft_loss", use_kl_loss=True)
    assert wanted_columns(supervised, num_steps=4) == set()


def test_entropy_is_computed_only_when_asked():
    assert not wants_entropy(AlgoConfig())
    assert wants_entropy(AlgoConfig(entropy_coef=0.01))
    assert wants_entropy(AlgoConfig(use_rollout_entropy=True))
