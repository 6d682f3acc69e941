"""What `--rollout-data-postprocess-path` leaves is what is packed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.algo import Hooks, advantage
from tandem.config import AlgoConfig, BatchConfig
from tandem.errors import HookError
from tandem.packing import pack
from tandem.parallel import Layout


def changed_by(change, groups, cfg=None):
    return advantage(groups, cfg or AlgoConfig(), Hooks(postprocess=change))


def test_it_sees_columns_and_its_changes_are_taken_over(make_group):
    seen = {}

    def change(data):
        seen.update(data)
        data["advantages"] = [2 * one for one in data["advantages"]]

    group = make_group(1.0, 0.0, 0.0)
    (plain,) = advantage([group], AlgoConfig())
    (done,) = changed_by(change, [group])
    for before_T, after_T in zip(plain.advantages, done.advantages, strict=True):
        assert np.allclose(after_T, 2 * before_T)
    assert plain.scores == pytest.approx(seen["rewards"])
    assert seen["raw_reward"] == [1.0, 0.0, 0.0] and sum(seen["rewards"]) == pytest.approx(0)
    lengths = seen["response_lengths"]
    for name in ("loss_masks", "advantages", "rollout_log_probs"):
        assert [len(one) for one in seen[name]] == lengths
    assert seen["rollout_mask_sums"] == [float(mask.sum()) for mask in seen["loss_masks"]]


def test_a_token_taken_out_adds_nothing_and_still_counts_in_the_denominator(make_group):
    def drop_first(data):
        masks = [mask.clone() for mask in data["loss_masks"]]
        for mask in masks:
            mask[int(mask.argmax())] = 0
        data["loss_masks"] = masks

    groups = [make_group(1.0, 0.0)]
    algo, cfg = AlgoConfig(), BatchConfig(micro_batch_size=8)
    ((before,),) = pack(advantage(groups, algo), Layout(), cfg, algo)
    ((after,),) = pack(changed_by(drop_first, groups), Layout(), cfg, algo)
    gone_T = before.mask_T != after.mask_T
    assert gone_T.sum() == 2 and after.mask_T[gone_T].eq(0).all()
    assert torch.equal(after.weight_T, torch.where(gone_T, 0.0, before.weight_T))
    assert after.denominator == before.denominator


def test_it_is_asked_where_there_are_no_advantages_too(make_group):
    seen = []
    cfg = AlgoConfig(loss_type="sft_loss")
    changed_by(lambda data: seen.append("advantages" in data), [make_group(0.0)], cfg)
    assert seen == [False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(advantages=[]), "advantages with another number"),
        (lambda data: data["loss_masks"].pop(), "loss_masks with another number"),
        (
            lambda data: data["advantages"].__setitem__(0, torch.zeros(1)),
            r"advantages . numbers for sample",
        ),
        (
            lambda data: data.update(loss_masks=[torch.ones(len(m)) for m in data["loss_masks"]]),
            "did not choose",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_an_error(make_group, change, said):
    group = make_group(1.0, 0.0)
    sample = group.samples[0]
    world_T = sample.sampled_T.copy()
    world_T[-1] = False  # the last token is the world's
    group = replace(group, samples=(replace(sample, sampled_T=world_T), group.samples[1]))
    with pytest.raises(HookError, match=said):
        changed_by(change, [group])
