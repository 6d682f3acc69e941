import math

import numpy as np
import pytest
import torch

PPO = {"advantage_estimator": "ppo", "gamma": 0.99, "lambd": 0.95}


def tensors(critic):
    """The value model's parameters by their names in a checkpoint."""
    return {name: piece.tensor for name, piece in critic.model_pieces().items()}


def critic_of(trainer):
    return trainer._critic


def test_values_begin_at_zero_and_lie_in_a_column(make_trainer, make_groups):
    trainer = make_trainer(algo=PPO)
    (group, _) = trainer.annotate(make_groups())
    for sample, values_T in zip(group.samples, group.values, strict=True):
        assert values_T.shape == (sample.num_tokens,) and (values_T == 0).all()


def test_a_value_is_the_head_on_the_state_before_the_token(make_trainer, make_groups):
    trainer = make_trainer(algo=PPO, temperature=0.5)
    model = critic_of(trainer)._model
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(3))
        model.head.bias.fill_(0.25)
    (group, _) = trainer.annotate(make_groups())
    sample, values_T = group.samples[0], group.values[0]

    def attend(layer, q_TNH, k_TKH, v_TKH):
        repeats = q_TNH.shape[1] // k_TKH.shape[1]
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k_TKH, v_TKH))
        scores = torch.einsum("tnh,snh->nts", q_TNH, k) / math.sqrt(q_TNH.shape[2])
        future = torch.ones(len(k), len(k), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return torch.einsum("nts,snh->tnh", weights, v)

    tokens = torch.from_numpy(sample.tokens_T.astype(np.int64))
    with torch.no_grad():
        hidden_TD = model.body(tokens, torch.arange(len(tokens)), attend)
    wanted_T = (hidden_TD @ model.head.weight[0].detach() + 0.25).numpy()  # no temperature
    for t in range(1, sample.num_tokens):
        wanted = wanted_T[t - 1] if sample.sampled_T[t] else 0.0
        assert values_T[t] == pytest.approx(wanted, abs=1e-4)


def test_the_critic_learns_what_samples_are_worth(make_trainer, make_groups, learn):
    trainer = make_trainer(algo={**PPO, "num_critic_only_steps": 100}, optim={"lr": 3e-3})
    losses = [learn(trainer, make_groups(1)).rows[0]["critic-value_loss"] for _ in range(40)]
    assert losses[-1] < losses[0] / 4


def test_while_it_warms_up_the_policy_stands_still(make_trainer, make_groups, learn):
    trainer = make_trainer(algo={**PPO, "num_critic_only_steps": 2})
    before = trainer.weights(0).digests
    for _ in range(2):
        (row,) = learn(trainer, make_groups()).rows
        assert "pg_loss" not in row and row["critic-grad_norm"] > 0
    assert trainer.weights(1).digests == before
    (row,) = learn(trainer, make_groups()).rows
    assert row["step"] == 0 and row["ppo_kl_abs"] == 0 and trainer.weights(2).digests != before


def test_it_shares_no_weight_with_the_policy(make_trainer, make_groups, learn):
    trainer = make_trainer(algo=PPO)
    body = critic_of(trainer)._model.body
    mine = {p.data_ptr() for p in trainer._model.parts[0].parameters()}
    assert not mine & {p.data_ptr() for p in body.parameters()}
    assert torch.equal(body.layers[0].qkv.weight, trainer._model.parts[0].layers[0].qkv.weight)


def test_an_untied_policy_has_a_critic_without_its_head(make_trainer, make_decoder, make_groups,
                                                        learn):  # fmt: skip
    trainer = make_trainer(algo=PPO, decoder=make_decoder(tied=False))
    assert "body.head.weight" not in dict(critic_of(trainer)._model.named_parameters())
    assert learn(trainer, make_groups()).rows[0]["critic-grad_norm"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_with_a_critic_resumes_to_the_same_bits(
    make_trainer, make_decoder, make_groups, learn, tmp_path, dtype
):
    def fresh(seed=0):
        algo = {**PPO, "num_critic_only_steps": 1}
        return make_trainer(algo=algo, decoder=make_decoder(seed=seed, dtype=dtype))

    whole, first = fresh(), fresh()
    for seed in range(3):
        learn(whole, make_groups(seed=seed))
    learn(first, make_groups(seed=0))
    first.save(tmp_path, 0, {})
    resumed = fresh(seed=9)
    resumed.load(tmp_path)
    for seed in (1, 2):
        learn(resumed, make_groups(seed=seed))
    assert resumed.state_digest() == whole.state_digest()


def test_the_models_alone_bring_the_critic_along(make_trainer, make_decoder, make_groups, learn,
                                                 tmp_path):  # fmt: skip
    trainer = make_trainer(algo=PPO)
    learn(trainer, make_groups())
    trainer.save(tmp_path, 0, {}, with_optimizer=False)
    fresh = make_trainer(algo=PPO, decoder=make_decoder(seed=5))
    fresh.load_weights(tmp_path)
    wanted = {name: t.clone() for name, t in tensors(critic_of(trainer)).items()}
    got = tensors(critic_of(fresh))
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
