"""GSPO, CISPO, sequence masking and the value loss against plain Python."""

import itertools
import math

import pytest
import torch

from tandem.algo import loss
from tandem.algo.objective import value_loss
from tandem.config import AlgoConfig

LOW, HIGH = 0.2, 0.3


def tokens_of(row):
    """(sequence, place) of every trained token, by sequence."""
    bounds, mask = row.bounds_S.tolist(), row.mask_T.tolist()
    return [[t for t in range(begin, end) if mask[t]] for begin, end in itertools.pairwise(bounds)]


def clip(x, low=1 - LOW, high=1 + HIGH):
    return min(max(x, low), high)


def logprobs(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return (-2 * torch.rand(40, generator=generator)).requires_grad_()


def lists(row):
    return row.weight_T.tolist(), row.advantages_T.tolist(), row.old_logprobs_T.tolist()


@pytest.mark.parametrize("dual", [None, 1.1])
def test_gspo_clips_the_ratio_of_the_whole_sequence(make_row, dual):
    row, lp = make_row("advantages_T", "old_logprobs_T"), logprobs()
    cfg = AlgoConfig(advantage_estimator="gspo", eps_clip=LOW, eps_clip_high=HIGH, eps_clip_c=dual)
    value, metrics = loss(row, lp, None, cfg)
    value.backward()
    weight, a, old = lists(row)
    p = lp.tolist()
    wanted, grad, clipped = 0.0, [0.0] * 40, 0.0
    for places in tokens_of(row):
        if not places:
            continue
        ratio = math.exp(sum(p[t] - old[t] for t in places) / len(places))
        slope = 0.0  # of the sequence's loss by its log-ratio
        for t in places:
            plain, bounded = -ratio * a[t], -clip(ratio) * a[t]
            one = max(plain, bounded)
            moves = plain >= bounded
            if dual is not None and a[t] < 0 and -dual * a[t] < one:
                one, moves = -dual * a[t], False
            wanted += weight[t] * one
            clipped += weight[t] * (bounded > plain)
            slope += weight[t] * plain * moves
        for t in places:
            grad[t] = slope / len(places)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert lp.grad.tolist() == pytest.approx(grad, rel=1e-4, abs=1e-7)
    assert metrics["pg_clipfrac"].item() == pytest.approx(clipped, rel=1e-5)


def test_gspo_of_a_sequence_does_not_depend_on_its_neighbours(make_row):
    row, lp = make_row("advantages_T", "old_logprobs_T"), logprobs()
    cfg = AlgoConfig(advantage_estimator="gspo")
    (value,) = torch.autograd.grad(loss(row, lp, None, cfg)[0], lp)
    moved = lp.detach().clone()
    moved[10:27] -= 0.5
    moved.requires_grad_()
    (other,) = torch.autograd.grad(loss(row, moved, None, cfg)[0], moved)
    assert torch.equal(value[:10], other[:10]) and torch.equal(value[27:], other[27:])
    assert not torch.equal(value[10:27], other[10:27])


def test_cispo_weighs_the_likelihood_by_the_clipped_ratio(make_row):
    row, lp = make_row("advantages_T", "old_logprobs_T"), logprobs()
    cfg = AlgoConfig(advantage_estimator="cispo", eps_clip=LOW, eps_clip_high=HIGH)
    value, metrics = loss(row, lp, None, cfg)
    value.backward()
    weight, a, old = lists(row)
    wanted, clipped, grad = 0.0, 0.0, []
    for t, p in enumerate(lp.tolist()):
        ratio = math.exp(p - old[t])
        wanted += weight[t] * -clip(ratio) * a[t] * p
        grad.append(-weight[t] * clip(ratio) * a[t])
        clipped += weight[t] * (clip(ratio) != ratio)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert lp.grad.tolist() == pytest.approx(grad, rel=1e-5)
    assert metrics["pg_clipfrac"].item() == pytest.approx(clipped, rel=1e-5)


def test_sequence_masking_drops_bad_samples_that_drifted(make_row):
    row, lp = make_row("advantages_T", "old_logprobs_T"), logprobs()
    delta = 0.02
    cfg = AlgoConfig(use_opsm=True, opsm_delta=delta, eps_clip=LOW, eps_clip_high=HIGH)
    value, metrics = loss(row, lp, None, cfg)
    weight, a, old = lists(row)
    p, wanted, dropped, drifts = lp.tolist(), 0.0, 0.0, []
    for places in tokens_of(row):
        drift = sum(old[t] - p[t] for t in places) / max(len(places), 1)
        drifts.append(drift)
        for t in places:
            if a[t] < 0 and drift > delta:
                dropped += weight[t]
                continue
            ratio = math.exp(p[t] - old[t])
            wanted += weight[t] * max(-ratio * a[t], -clip(ratio) * a[t])
    assert drifts[0] > delta > max(drifts[1:])
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert metrics["opsm_clipfrac"].item() == pytest.approx(dropped, rel=1e-5)


def test_on_policy_nothing_is_masked(make_row):
    row = make_row("advantages_T")
    _, metrics = loss(row, logprobs(), None, AlgoConfig(use_opsm=True))
    assert metrics["opsm_clipfrac"].item() == 0.0


def test_the_value_loss_is_the_worse_of_two_squares(make_row):
    row = make_row("returns_T", "values_T")
    values = (logprobs() + 1.0).detach().requires_grad_()
    value, metrics = value_loss(row, values, AlgoConfig(value_clip=0.1))
    value.backward()
    wanted, clipped, grad = 0.0, 0.0, []
    for w, v, old, r in zip(
        row.weight_T.tolist(), values.tolist(), row.values_T.tolist(), row.returns_T.tolist(),
        strict=True,
    ):  # fmt: skip
        bounded = old + min(max(v - old, -0.1), 0.1)
        wanted += w * max((bounded - r) ** 2, (v - r) ** 2)
        moves = (v - r) ** 2 > (bounded - r) ** 2 or abs(v - old) <= 0.1
        grad.append(w * 2 * (v - r) if moves else 0.0)
        clipped += w * (abs(v - old) > 0.1)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    assert values.grad.tolist() == pytest.approx(grad, rel=1e-4, abs=1e-7)
    assert metrics["value_clipfrac"].item() == pytest.approx(clipped, rel=1e-5)
