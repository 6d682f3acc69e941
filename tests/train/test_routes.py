"""Experts that are replayed, recorded and kept busy while a policy learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.algo import advantage
from tandem.config import Config, DataConfig
from tandem.errors import ConfigError
from tandem.models.mixture import Mixture
from tandem.packing import pack
from tandem.train import build_trainer

MIXTURE = Mixture(num_experts=6, per_token=2, ffn=16, layers=(1,), normalises=True)
TWO_STEPS = {"global_batch_size": 4}
STILL = {"weight_decay": 0.0}


@pytest.fixture
def make_mixed(make_decoder):
    return lambda seed=0: make_decoder(seed, mixture=MIXTURE)


def _moved(decoder, before) -> list[int]:
    """The experts whose weights are not what they were."""
    now = decoder.layers[1].experts.down.weight
    return (now != before).flatten(1).any(1).nonzero().flatten().tolist()


def test_the_engines_experts_are_those_that_learn(make_mixed, make_trainer, make_groups, learn):
    decoder = make_mixed()
    before = decoder.layers[1].experts.down.weight.detach().clone()
    groups = [
        replace(
            group,
            samples=tuple(
                replace(sample, experts_TLk=np.full((sample.num_tokens, 1, 2), [1, 4], np.int16))
                for sample in group.samples
            ),
        )
        for group in make_groups()
    ]
    replays = {"use_routing_replay": True, "use_rollout_routing_replay": True}
    trainer = make_trainer(decoder=decoder, algo=replays, optim=STILL)
    learn(trainer, groups)
    assert _moved(decoder, before) == [1, 4]

    decoder = make_mixed()
    learn(make_trainer(decoder=decoder, optim=STILL), groups)
    assert len(_moved(decoder, before)) > 2  # without the flag routers choose


def test_the_first_pass_says_which_experts_it_took(make_mixed, make_trainer, make_groups):
    trainer = make_trainer(
        decoder=make_mixed(), algo={"use_routing_replay": True}, batch=TWO_STEPS, step_size=4
    )
    plain = make_trainer(decoder=make_mixed(), batch=TWO_STEPS, step_size=4)
    groups = trainer.annotate(make_groups())
    samples = [sample for group in groups for sample in group.samples]
    scored = [sample for sample in samples if (sample.experts_TLk >= 0).all()]
    unknown = [sample for sample in samples if (sample.experts_TLk == -1).all()]
    assert len(scored) + len(unknown) == len(samples) and len(scored) > len(unknown) > 0
    assert len(np.unique(np.concatenate([sample.experts_TLk for sample in scored]))) > 2
    for group, other in zip(groups, plain.annotate(make_groups()), strict=True):
        assert all(sample.experts_TLk is None for sample in other.samples)
        for one, two in zip(group.old_logprobs, other.old_logprobs, strict=True):
            assert (one == two).all()


def test_a_replayed_pass_has_ratio_one_whatever_routers_say_by_then(
    make_mixed, make_trainer, make_groups
):
    """The second step's routers choose otherwise; the experts of the first pass are taken."""
    found = {}
    for replays in (True, False):
        decoder = make_mixed()
        algo = {"use_routing_replay": replays}
        trainer = make_trainer(decoder=decoder, algo=algo, batch=TWO_STEPS, step_size=4)
        learning = trainer._learning
        groups = advantage(trainer.annotate(make_groups()), learning.algo)
        steps = pack(groups, trainer.layout, learning.batch, learning.algo)
        with torch.no_grad():  # as if the first step had turned the router round
            decoder.layers[1].experts.router.weight.neg_()
        (row,) = trainer.step_on(steps[1:]).rows
        found[replays] = abs(row["ppo_kl"])
    assert found[True] < found[False] / 2


def test_busy_experts_are_a_loss_only_if_asked(make_mixed, make_trainer, make_groups, learn):
    routers = {}
    for coef in (0.0, 0.5):
        decoder = make_mixed()
        trainer = make_trainer(decoder=decoder, algo={"moe_aux_loss_coeff": coef})
        rows = [learn(trainer, make_groups()).rows[0] for _ in range(12)]
        routers[coef] = [row.get("load_balancing_loss") for row in rows]
    assert set(routers[0.0]) == {None}
    assert routers[0.5][0] > routers[0.5][-1] > 0.5


@pytest.mark.parametrize(
    "algo", [{"use_routing_replay": True}, {"moe_aux_loss_coeff": 0.1}], ids=str
)
def test_a_model_without_experts_has_nothing_to_route(make_decoder, algo):
    cfg = Config(data=DataConfig(rollout_batch_size=2, n_samples_per_prompt=4))
    cfg = replace(cfg, algo=replace(cfg.algo, **algo))
    with pytest.raises(ConfigError, match="no experts"):
        build_trainer(cfg, make_decoder(), None, num_rollout=2)
