"""The dialect's hooks, called as its users wrote them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tandem.algo import Hooks, advantage, loss
from tandem.algo.dialect import response_logprobs
from tandem.algo.hooks import hooked_loss
from tandem.config import AlgoConfig
from tandem.errors import HookError

ARGS = SimpleNamespace(favourite=2.0)


def logprobs():
    return -2 * torch.rand(40, generator=torch.Generator().manual_seed(9))


def centred_over_all(args, rollout_data):
    """An advantage function: rewards less their mean over everything, scaled by a setting."""
    mean = sum(rollout_data["raw_reward"]) / len(rollout_data["raw_reward"])
    found = [
        torch.full((length,), (reward - mean) * args.favourite)
        for reward, length in zip(
            rollout_data["raw_reward"], rollout_data["response_lengths"], strict=True
        )
    ]
    rollout_data["advantages"] = rollout_data["returns"] = found


def test_a_custom_advantage_function_sets_advantages_over_responses(make_group):
    groups = [make_group(1.0, 0.0, responses=[3, 5], masked=[1]), make_group(2.0, responses=[1])]
    done = advantage(groups, AlgoConfig(), Hooks(args=ARGS, advantage=centred_over_all))
    wanted = [[0.0, -2.0], [2.0]]
    for group, values in zip(done, wanted, strict=True):
        for sample, column_T, value in zip(group.samples, group.advantages, values, strict=True):
            assert column_T.tolist() == np.where(sample.sampled_T, value, 0.0).tolist()


def test_it_sees_the_columns_of_the_rollout(make_group, with_columns):
    group = with_columns(
        make_group(1.0, 0.5, responses=[3, 5]), "old_logprobs", "reference_logprobs", "values"
    )
    seen = {}

    def look(args, rollout_data):
        seen.update(rollout_data)
        centred_over_all(args, rollout_data)

    cfg = AlgoConfig(kl_coef=0.5)
    advantage([group], cfg, Hooks(args=ARGS, advantage=look))
    assert [len(one) for one in seen["log_probs"]] == seen["response_lengths"] == [3, 5]
    for kl, ours, reference in zip(
        seen["kl"], seen["log_probs"], seen["ref_log_probs"], strict=True
    ):
        assert torch.allclose(kl, ours - reference)
    assert torch.equal(seen["values"][1], torch.from_numpy(group.values[1][2:]))
    assert seen["loss_masks"][0].tolist() == [1, 1, 1]
    assert seen["raw_reward"] == [1.0, 0.5]
    assert seen["rewards"] == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-5)


@pytest.mark.parametrize(
    ("set_to", "complaint"),
    [
        (None, 'without setting rollout_data\\["advantages"\\]'),
        ([torch.zeros(3)], "set 1 advantages for 2 samples"),
        ([torch.zeros(3), torch.zeros(4)], "set 4 numbers for sample 1, whose response has 3"),
    ],
)
def test_what_it_forgets_is_said(make_group, set_to, complaint):
    def forgetful(args, rollout_data):
        rollout_data["advantages"] = set_to

    with pytest.raises(HookError, match=complaint):
        advantage([make_group(1.0, 0.0)], AlgoConfig(), Hooks(advantage=forgetful))


def test_a_critic_needs_the_returns_too(make_group, with_columns):
    def half(args, rollout_data):
        rollout_data["advantages"] = [torch.zeros(3), torch.zeros(3)]

    group = with_columns(make_group(1.0, 0.0), "values")
    with pytest.raises(HookError, match=r'setting rollout_data\["returns"\]'):
        advantage([group], AlgoConfig(advantage_estimator="ppo"), Hooks(advantage=half))


def test_post_processed_rewards_replace_normalisation_and_skip_missing_verdicts(make_group):
    hooks = Hooks(post_process=lambda groups: [np.array([10.0, 20.0, 30.0]) for _ in groups])
    (done,) = advantage([make_group(1.0, None, 0.0)], AlgoConfig(), hooks)
    assert [column_T[-1] for column_T in done.advantages] == [10.0, 0.0, 30.0]


def halving(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths,
            response_lengths, **kwargs):  # fmt: skip
    """A correction: halves the loss and drops every sample's first response token."""
    gaps = torch.cat([a - b for a, b in zip(train_log_probs, rollout_log_probs, strict=True)])
    masks = [torch.cat([mask.new_zeros(1), mask[1:]]) for mask in loss_masks]
    assert [len(mask) for mask in masks] == response_lengths
    return pg_loss / 2, masks, {"gap": gaps.abs()}


def test_a_custom_correction_changes_losses_and_masks_but_no_denominator(make_row):
    row = make_row("advantages_T", "engine_logprobs_T", "old_logprobs_T")
    lp, hooks = logprobs(), Hooks(tis=halving)
    value, metrics = loss(row, lp, None, AlgoConfig(use_tis=True), hooks=hooks)
    weight_T = row.weight_T.clone()
    for begin, end in zip([0, 9, 10, 27], [9, 10, 27, 33], strict=True):
        weight_T[begin + row.mask_T[begin:end].nonzero()[:1, 0]] = 0
    plain, _ = loss(replace(row, weight_T=weight_T), lp, None, AlgoConfig())
    assert value.item() == pytest.approx(plain.item() / 2, rel=1e-6)
    gap = (row.weight_T * (row.old_logprobs_T - row.engine_logprobs_T).abs()).sum()
    assert metrics["gap"].item() == pytest.approx(gap.item(), rel=1e-5)


def test_mismatch_metrics_alone_change_no_loss(make_row):
    row = make_row("advantages_T", "engine_logprobs_T", "old_logprobs_T")
    cfg = AlgoConfig(get_mismatch_metrics=True)
    value, metrics = loss(row, logprobs(), None, cfg, hooks=Hooks(tis=halving))
    assert value.item() == loss(row, logprobs(), None, AlgoConfig())[0].item()
    assert "gap" in metrics


def test_a_correction_that_returns_something_else_is_named(make_row):
    row = make_row("advantages_T", "engine_logprobs_T")
    hooks = Hooks(tis=lambda args, **more: more["pg_loss"])
    with pytest.raises(HookError, match=r"must return \(pg_loss, modified_loss_masks, metrics\)"):
        loss(row, logprobs(), None, AlgoConfig(use_tis=True), hooks=hooks)


def test_a_custom_reducer_sums_the_policy_term_alone(make_row):
    row = make_row("advantages_T", "old_logprobs_T", "reference_logprobs_T")

    def token_sums(total_lengths, response_lengths, loss_masks, per_token):
        assert not per_token and len(total_lengths) == len(loss_masks)
        masks = torch.cat(loss_masks)
        return lambda x: (x * masks).sum()

    cfg = AlgoConfig(use_kl_loss=True, kl_loss_coef=0.1)
    lp = logprobs()
    value, metrics = loss(row, lp, None, cfg, hooks=Hooks(reducer=token_sums))
    flat, _ = loss(replace(row, weight_T=row.mask_T / 4.0), lp, None, AlgoConfig())
    assert metrics["pg_loss"].item() == pytest.approx(flat.item(), rel=1e-6)
    kl = loss(row, lp, None, cfg)[1]["kl_loss"].item()
    assert value.item() == pytest.approx(flat.item() + 0.1 * kl, rel=1e-6)


def test_a_custom_loss_starts_from_logits_and_is_summed_as_every_loss(make_row):
    row = make_row("advantages_T")
    tokens_T = torch.randint(0, 11, (40,), generator=torch.Generator().manual_seed(1))
    row = replace(row, tokens_T=tokens_T, targets_T=tokens_T.roll(-1))
    logits_TV = torch.randn(40, 11, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def weighted_likelihood(args, batch, logits, sum_of_sample_mean):
        lp = torch.cat(response_logprobs(batch, logits, temperature=0.5))
        a = torch.cat(batch["advantages"])
        value = sum_of_sample_mean(-lp * a)
        return value, {"likelihood": sum_of_sample_mean(lp)}

    value, metrics = hooked_loss(row, logits_TV, Hooks(loss=weighted_likelihood))
    value.backward()
    lp_TV = (logits_TV.detach() / 0.5).log_softmax(-1)
    lp_T = lp_TV.gather(1, row.targets_T[:, None])[:, 0]
    assert value.item() == pytest.approx(-(row.weight_T * row.advantages_T * lp_T).sum().item())
    assert metrics["likelihood"].item() == pytest.approx((row.weight_T * lp_T).sum().item())
    assert metrics["loss"].item() == value.item() and logits_TV.grad is not None


def test_a_hook_that_gives_too_few_numbers_is_told_how_many(make_row):
    row = make_row("advantages_T")
    hooks = Hooks(loss=lambda args, batch, logits, reduce: (reduce(logits[0, :3, 0]), {}))
    with pytest.raises(HookError, match=r"size \(3,\) where one number is wanted for each of \d+"):
        hooked_loss(row, torch.zeros(40, 5), hooks)
