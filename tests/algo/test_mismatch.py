"""Corrections of the trainer-engine mismatch against plain Python."""

import itertools
import math
import statistics

import pytest
import torch

from tandem.algo import loss
from tandem.algo.mismatch import Tokens, correction, normaliser
from tandem.config import AlgoConfig

COLUMNS = ("advantages_T", "old_logprobs_T", "engine_logprobs_T")


@pytest.fixture
def row(make_row):
    return make_row(*COLUMNS)


def tokens_of(row):
    return Tokens(row.old_logprobs_T, row.engine_logprobs_T, row.mask_T, row.bounds_S)


def sequences(row):
    bounds, mask = row.bounds_S.tolist(), row.mask_T.tolist()
    return [[t for t in range(begin, end) if mask[t]] for begin, end in itertools.pairwise(bounds)]


def gaps(row):
    pairs = zip(row.old_logprobs_T.tolist(), row.engine_logprobs_T.tolist(), strict=True)
    return [a - b for a, b in pairs]


def ratios(row, level):
    """The ratio at each trained token, in plain Python."""
    gap, found = gaps(row), {}
    for places in sequences(row):
        if not places:
            continue
        whole = sum(gap[t] for t in places)
        mean = whole / len(places)
        for t in places:
            one = {"token": gap[t], "sequence": whole, "geometric": mean}[level]
            found[t] = math.exp(min(max(one, -20), 20))
    return found


def policy_losses(row, lp):
    """The clipped surrogate around the trainer's own log-probs, a token."""
    return [
        max(-r * a, -min(max(r, 0.8), 1.2) * a)
        for r, a in zip(
            [math.exp(x - y) for x, y in zip(lp, row.old_logprobs_T.tolist(), strict=True)],
            row.advantages_T.tolist(), strict=True,
        )
    ]  # fmt: skip


def logprobs():
    return -2 * torch.rand(40, generator=torch.Generator().manual_seed(9))


def test_tis_is_decoupled_ppo_with_a_bounded_weight(row):
    cfg = AlgoConfig(use_tis=True, tis_clip=1.5, tis_clip_low=0.5)
    lp = logprobs()
    value, metrics = loss(row, lp, None, cfg)
    weight, ratio = row.weight_T.tolist(), ratios(row, "token")
    terms = policy_losses(row, lp.tolist())
    wanted = sum(weight[t] * min(max(ratio[t], 0.5), 1.5) * terms[t] for t in ratio)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    said = {
        "tis": sum(weight[t] * ratio[t] for t in ratio),
        "tis_abs": sum(weight[t] * abs(ratio[t] - 1) for t in ratio),
        "tis_clipfrac": sum(weight[t] * (not 0.5 <= ratio[t] <= 1.5) for t in ratio),
    }
    assert {name: metrics[name].item() for name in said} == pytest.approx(said, rel=1e-5)


def test_icepop_drops_what_is_outside_the_bounds(row):
    cfg = AlgoConfig(use_tis=True, tis_function="icepop", tis_clip=1.5, tis_clip_low=0.5)
    lp = logprobs()
    value, _ = loss(row, lp, None, cfg)
    weight, ratio = row.weight_T.tolist(), ratios(row, "token")
    terms = policy_losses(row, lp.tolist())
    wanted = sum(weight[t] * r * terms[t] for t, r in ratio.items() if 0.5 <= r <= 1.5)
    assert 0 < sum(0.5 <= r <= 1.5 for r in ratio.values()) < len(ratio)
    assert value.item() == pytest.approx(wanted, rel=1e-5)


def expected_mis(row, cfg):
    """(weight, is kept) of each trained token."""
    high = cfg.tis_upper_bound
    low = 1 / high if cfg.tis_lower_bound is None else cfg.tis_lower_bound
    weights, rejection = ratios(row, cfg.tis_level), ratios(row, cfg.rs_level or cfg.tis_level)
    tokens, found = ratios(row, "token"), {}
    rs_low = low if cfg.rs_lower_bound is None else cfg.rs_lower_bound
    rs_high = high if cfg.rs_upper_bound is None else cfg.rs_upper_bound
    for places in sequences(row):
        threshold = cfg.rs_veto_threshold
        is_vetoed = threshold is not None and any(tokens[t] < threshold for t in places)
        for t in places:
            w, is_kept = weights[t], True
            if cfg.tis_mode == "mask":
                is_kept = low <= w <= high
            elif cfg.tis_mode == "clip":
                w = min(max(w, low), high)
            else:
                w = min(w, high)
            if cfg.use_rs:
                is_kept = is_kept and rs_low <= rejection[t] <= rs_high and not is_vetoed
            found[t] = (w if cfg.use_tis else 1.0, is_kept)
    return found


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "clip", "mask"])
@pytest.mark.parametrize(
    "rejection",
    [
        {},
        {"use_rs": True},
        {"use_rs": True, "rs_level": "geometric", "rs_lower_bound": 0.9, "rs_upper_bound": 1.4},
        {"use_rs": True, "rs_lower_bound": 0.0, "rs_upper_bound": 1e9, "rs_veto_threshold": 0.25},
        {"use_rs": True, "use_tis": False},
    ],
)
def test_mis_weighs_and_rejects_by_its_levels_and_bounds(row, level, mode, rejection):
    cfg = AlgoConfig(
        **{"use_tis": True, "tis_function": "mis", "tis_level": level, "tis_mode": mode,
           "tis_upper_bound": 1.5, **rejection}
    )  # fmt: skip
    lp = logprobs()
    value, metrics = loss(row, lp, None, cfg)
    weight, terms = row.weight_T.tolist(), policy_losses(row, lp.tolist())
    wanted = expected_mis(row, cfg)
    total = sum(weight[t] * w * terms[t] for t, (w, is_kept) in wanted.items() if is_kept)
    assert value.item() == pytest.approx(total, rel=1e-4, abs=1e-7)
    rejected = sum(weight[t] for t, (_, is_kept) in wanted.items() if not is_kept)
    assert metrics["mis_rejected_fraction"].item() == pytest.approx(rejected, rel=1e-5, abs=1e-9)
    assert all(math.isfinite(metric.item()) for metric in metrics.values())


def test_the_metrics_of_mis_describe_both_policies(row):
    cfg = AlgoConfig(get_mismatch_metrics=True, tis_function="mis", tis_level="token")
    lp = logprobs()
    value, metrics = loss(row, lp, None, cfg)
    assert value.item() == loss(row, lp, None, AlgoConfig())[0].item(), "metrics correct nothing"
    weight, gap, ratio = row.weight_T.tolist(), gaps(row), ratios(row, "token")
    wanted = dict.fromkeys(
        ("mis_kl", "mis_k3_kl", "mis_ratio_mean", "mis_ratio_min", "mis_training_ppl"), 0.0
    )
    for places in filter(None, sequences(row)):
        mean = statistics.fmean(row.old_logprobs_T[t].item() for t in places)
        for t in places:
            wanted["mis_kl"] -= weight[t] * gap[t]
            wanted["mis_k3_kl"] += weight[t] * (ratio[t] - 1 - gap[t])
            wanted["mis_ratio_mean"] += weight[t] * ratio[t]
            wanted["mis_ratio_min"] += weight[t] * min(ratio[s] for s in places)
            wanted["mis_training_ppl"] += weight[t] * math.exp(-mean)
    got = {name: metrics[name].item() for name in wanted}
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["tis", "icepop", "mis"])
def test_normalised_weights_have_mean_one_over_the_step(make_row, name):
    cfg = AlgoConfig(use_tis=True, tis_function=name, tis_batch_normalize=True)
    rows = [tokens_of(make_row(*COLUMNS, seed=seed)) for seed in range(3)]
    scale = normaliser(rows, cfg)
    weights = [
        w
        for tokens in rows
        for w in correction(tokens, cfg, scale).weight_T[tokens.mask_T > 0].tolist()
    ]
    assert statistics.fmean(weights) == pytest.approx(1.0, rel=1e-5)
    assert normaliser(rows, AlgoConfig(use_tis=True, tis_function=name)) == 1.0


@pytest.mark.parametrize("name", ["tis", "icepop", "mis"])
def test_equal_policies_are_left_alone(make_row, name):
    row = make_row("advantages_T", "old_logprobs_T")
    tokens = Tokens(row.old_logprobs_T, row.old_logprobs_T, row.mask_T, row.bounds_S)
    found = correction(tokens, AlgoConfig(use_tis=True, tis_function=name, use_rs=True))
    assert (found.weight_T == 1).all()
    assert torch.equal(found.is_kept_T, row.mask_T > 0)
