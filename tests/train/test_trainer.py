import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tandem.algo import advantage
from tandem.checkpoint.names import hugging_face_shapes
from tandem.config import AlgoConfig
from tandem.errors import CheckpointError, TandemError
from tandem.models.decoder import Recompute
from tandem.packing import pack
from tandem.parallel import Layout
from tandem.train import broken_invariants, canary_tokens

FULL_ALGO = {
    "use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "low_var_kl", "entropy_coef": 0.01,
    "eps_clip_high": 0.28,
}  # fmt: skip


def logprobs_of(decoder, tokens_T, temperature=1.0):
    """Log-probs of every next token by a dense forward pass and torch's log-softmax."""
    tokens = torch.from_numpy(tokens_T.astype(np.int64))
    row = pack_one(tokens)
    hidden_TD = decoder(row[0], row[1], dense_attention)
    logits_TV = decoder.logits(hidden_TD).double() / temperature
    return logits_TV.log_softmax(-1)


def pack_one(tokens):
    return tokens, torch.arange(len(tokens))


def dense_attention(layer, q_TNH, k_TKH, v_TKH):
    """Causal attention over one sequence, written out."""
    repeats = q_TNH.shape[1] // k_TKH.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k_TKH, v_TKH))
    scores = torch.einsum("tnh,snh->nts", q_TNH, k) / math.sqrt(q_TNH.shape[2])
    mask = torch.ones(len(q_TNH), len(q_TNH), dtype=torch.bool).triu(1)
    return torch.einsum("nts,snh->tnh", scores.masked_fill(mask, -math.inf).softmax(-1), v)


def gradients_of(trainer, groups):
    """The gradient of one step, before the optimizer uses it."""
    learning = trainer._learning
    groups = advantage(trainer.annotate(groups), learning.algo)
    (batches,) = pack(groups, trainer.layout, learning.batch, learning.algo)
    metrics = trainer._accumulate(batches)
    named = {n: p.grad.clone() for n, p in trainer._model.parts[0].named_parameters()}
    trainer._descent.optimizer.drop_gradients()
    return named, {name: value.item() for name, value in metrics.items()}


def largest_error(got, wanted):
    return max(
        ((got[name] - wanted[name]).abs().max() / wanted[name].abs().max()).item()
        for name in wanted
    )


def test_loss_and_gradient_are_the_formula_on_a_dense_forward_pass(
    make_trainer, make_decoder, make_groups
):
    algo = {**FULL_ALGO, "use_rollout_logprobs": True}
    reference, temperature = make_decoder(seed=1), 0.7
    trainer = make_trainer(algo=algo, reference=reference, temperature=temperature)
    groups = make_groups()
    got, metrics = gradients_of(trainer, groups)

    decoder = make_decoder()
    terms = []
    for group in advantage(groups, AlgoConfig(**algo)):
        for sample, advantages_T in zip(group.samples, group.advantages, strict=True):
            if sample.reward is None:
                terms.append(torch.zeros(()))
                continue
            now_TV = logprobs_of(decoder, sample.tokens_T, temperature)
            with torch.no_grad():
                ref_TV = logprobs_of(reference, sample.tokens_T, temperature)
            places = [t for t in range(1, sample.num_tokens) if sample.sampled_T[t]]
            tokens = []
            for t in places:
                lp, ref = (x[t - 1, sample.tokens_T[t]] for x in (now_TV, ref_TV))
                ratio, a = (lp - float(sample.logprobs_T[t])).exp(), float(advantages_T[t])
                pg = torch.maximum(-ratio * a, -ratio.clamp(0.8, 1.28) * a)
                kl = ((ref - lp).exp() - 1 - (ref - lp)).clamp(-10, 10)
                entropy = -(now_TV[t - 1].exp() * now_TV[t - 1]).sum()
                tokens.append(pg - 0.01 * entropy + 0.1 * kl)
            terms.append(torch.stack(tokens).mean())
    wanted = torch.stack(terms).mean()
    wanted.backward()
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert largest_error(got, {n: p.grad for n, p in decoder.named_parameters()}) < 2e-5


@pytest.mark.parametrize("is_per_token", [False, True])
def test_metrics_and_gradient_do_not_depend_on_the_packing(
    make_trainer, make_decoder, make_groups, is_per_token
):
    algo = {**FULL_ALGO, "use_rollout_logprobs": True, "calculate_per_token_loss": is_per_token}
    groups = make_groups(3)
    found = []
    for batch in (
        {"use_dynamic_batch_size": False, "micro_batch_size": 1},
        {"use_dynamic_batch_size": False, "micro_batch_size": 5},
        {"max_tokens_per_gpu": 30},
        {"max_tokens_per_gpu": 4096},
        {"max_tokens_per_gpu": 60, "balance_by_flops": True},
    ):
        reference = make_decoder(seed=1)
        trainer = make_trainer(algo=algo, batch=batch, reference=reference)
        found.append(gradients_of(trainer, groups))
    padded = make_trainer(algo=algo, reference=make_decoder(seed=1), layout=Layout(row_multiple=16))
    found.append(gradients_of(padded, groups))
    wanted, wanted_metrics = found[0]
    for got, metrics in found[1:]:
        assert metrics == pytest.approx(wanted_metrics, rel=1e-6)
        assert largest_error(got, wanted) < 2e-6


def test_the_same_input_gives_the_same_bits(make_trainer, make_groups, learn):
    digests = []
    for _ in range(2):
        trainer = make_trainer()
        learn(trainer, make_groups())
        digests.append(trainer.state_digest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize("method", ["uniform", "block"])
def test_recomputing_activations_changes_no_bit(make_trainer, make_groups, method, learn):
    plain, recomputing = make_trainer(), make_trainer(recompute=Recompute(method=method))
    learn(plain, make_groups())
    learn(recomputing, make_groups())
    assert plain.state_digest() == recomputing.state_digest()


def test_one_step_needs_no_old_logprobs_and_has_ratio_exactly_one(make_trainer, make_groups, learn):
    trainer = make_trainer()
    groups = make_groups()
    assert trainer.annotate(groups) == tuple(groups)
    (row,) = learn(trainer, groups).rows
    assert row["ppo_kl"] == row["ppo_kl_abs"] == row["pg_clipfrac"] == 0.0
    assert "entropy_loss" not in row and "kl_loss" not in row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_several_steps_has_ratio_exactly_one_and_the_next_has_not(
    make_trainer, make_decoder, make_groups, dtype, learn
):
    trainer = make_trainer(
        batch={"global_batch_size": 4}, step_size=4, decoder=make_decoder(dtype=dtype)
    )
    stats = learn(trainer, make_groups(3))
    assert [row["step"] for row in stats.rows] == [0, 1, 2]
    # bit for bit: the rows that were scored are the rows that are trained on
    assert stats.rows[0]["ppo_kl_abs"] == 0.0 and stats.rows[0]["pg_clipfrac"] == 0.0
    assert stats.rows[1]["ppo_kl_abs"] > 0 and stats.rows[2]["ppo_kl_abs"] > 0
    assert broken_invariants(stats, AlgoConfig(), "fp32") == ()


def test_a_policy_that_is_not_its_own_past_is_reported(make_trainer, make_groups):
    trainer = make_trainer(batch={"global_batch_size": 4}, step_size=4)
    groups = trainer.annotate(make_groups())
    wrong = [
        replace(g, old_logprobs=tuple((x - 0.1 * (x != 0)).astype(np.float32) for x in column))
        for g, column in ((g, g.old_logprobs) for g in groups)
    ]
    learning = trainer._learning
    steps = pack(advantage(wrong, learning.algo), trainer.layout, learning.batch, learning.algo)
    stats = trainer.step_on(steps)
    (sentence,) = broken_invariants(stats, learning.algo, "fp32")
    assert "differs from its own old log-probs by 0.1 nats" in sentence
    assert broken_invariants(stats, AlgoConfig(use_rollout_logprobs=True), "fp32") == ()


def test_annotated_logprobs_are_those_of_a_dense_forward_pass(
    make_trainer, make_decoder, make_groups
):
    reference = make_decoder(seed=1)
    trainer = make_trainer(
        algo={"use_kl_loss": True}, batch={"global_batch_size": 4}, reference=reference,
        temperature=0.5,
    )  # fmt: skip
    groups = make_groups()
    done = trainer.annotate(groups)
    for decoder, name in ((make_decoder(), "old_logprobs"), (reference, "reference_logprobs")):
        for group in done:
            for sample, column_T in zip(group.samples, getattr(group, name), strict=True):
                with torch.no_grad():
                    all_TV = logprobs_of(decoder, sample.tokens_T, 0.5)
                is_scored = sample.reward is not None
                for t in range(sample.num_tokens):
                    wanted = 0.0
                    if sample.sampled_T[t] and is_scored:
                        wanted = all_TV[t - 1, sample.tokens_T[t]].item()
                    assert column_T[t] == pytest.approx(wanted, abs=2e-5)
    assert all(g.advantages is None for g in done)


def test_the_reference_does_not_learn_and_kl_to_itself_begins_at_zero(
    make_trainer, make_decoder, make_groups, learn
):
    reference = make_decoder()
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    trainer = make_trainer(algo={"use_kl_loss": True, "kl_loss_coef": 0.1}, reference=reference)
    first = learn(trainer, make_groups()).rows[0]
    second = learn(trainer, make_groups()).rows[0]
    assert first["kl_loss"] == 0.0 and second["kl_loss"] != 0.0
    assert all(torch.equal(before[n], t) for n, t in reference.state_dict().items())


def test_resuming_gives_the_same_bits_as_never_stopping(make_trainer, make_groups, tmp_path, learn):
    kinds = {"optim": {"lr_decay_style": "cosine", "lr_warmup_iters": 2, "lr": 1e-2}}
    rollouts = [make_groups(seed=seed) for seed in range(4)]
    whole = make_trainer(**kinds)
    whole_rows = [learn(whole, groups).rows for groups in rollouts]

    first = make_trainer(**kinds)
    for groups in rollouts[:2]:
        learn(first, groups)
    first.save(tmp_path, 1, {"sampler": {"place": 7}})
    resumed = make_trainer(**kinds)
    assert resumed.load(tmp_path) == {"sampler": {"place": 7}}
    assert resumed.state_digest() == first.state_digest()
    rows = [learn(resumed, groups).rows for groups in rollouts[2:]]
    assert resumed.state_digest() == whole.state_digest()
    assert rows == whole_rows[2:]


def test_resuming_in_bf16_gives_the_same_bits(
    make_trainer, make_decoder, make_groups, tmp_path, learn
):
    def fresh():
        return make_trainer(decoder=make_decoder(dtype=torch.bfloat16))

    whole, first, resumed = fresh(), fresh(), fresh()
    for seed in range(4):
        learn(whole, make_groups(seed=seed))
    for seed in range(2):
        learn(first, make_groups(seed=seed))
    first.save(tmp_path, 1, {})
    resumed.load(tmp_path)
    for seed in range(2, 4):
        learn(resumed, make_groups(seed=seed))
    assert resumed.state_digest() == whole.state_digest()


def test_weights_alone_can_be_taken_from_a_checkpoint(make_trainer, make_groups, tmp_path, learn):
    trainer = make_trainer()
    learn(trainer, make_groups())
    trainer.save(tmp_path, 0, {}, with_optimizer=False)
    fresh = make_trainer()
    with pytest.raises(CheckpointError, match="does not hold what is to be loaded"):
        fresh.load(tmp_path)
    fresh.load_weights(tmp_path)
    assert fresh.weights(0).digests == trainer.weights(0).digests
    (row,) = learn(fresh, make_groups()).rows
    assert row["step"] == 0


def poison(trainer, value):
    with torch.no_grad():
        trainer._model.parts[0].norm.weight[0] = value


def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(
    make_trainer, make_groups, learn
):
    trainer = make_trainer()
    learn(trainer, make_groups())
    poison(trainer, math.nan)
    before = trainer.state_digest()
    with pytest.raises(TandemError, match=r"optimizer step 1: the gradient norm is nan"):
        learn(trainer, make_groups())
    assert trainer.state_digest() == before


def test_or_is_skipped_when_asked(make_trainer, make_groups, learn):
    trainer = make_trainer(
        optim={"no_check_for_nan_in_loss_and_grad": True, "lr_warmup_iters": 4, "lr": 1e-3}
    )
    learn(trainer, make_groups())
    kept = trainer._model.parts[0].norm.weight[0].item()
    poison(trainer, math.nan)
    before = trainer.state_digest()
    (skipped,) = learn(trainer, make_groups()).rows
    assert skipped["skipped"] == 1.0 and trainer.state_digest() == before
    poison(trainer, kept)
    (taken,) = learn(trainer, make_groups()).rows
    assert taken["skipped"] == 0.0
    assert taken["step"] == 1 and taken["lr-pg_0"] == skipped["lr-pg_0"], "the clock stood still"


def test_a_step_reports_what_it_was(make_trainer, make_groups, learn):
    trainer = make_trainer(algo={"use_rollout_entropy": True}, optim={"lr": 3e-4})
    stats = learn(trainer, make_groups())
    (row,) = stats.rows
    assert row["lr-pg_0"] == 3e-4 and row["global_batch_size"] == 8 and row["grad_norm"] > 0
    assert row["train_rollout_logprob_abs_diff"] > 0 and row["entropy_loss"] > 0
    assert set(stats.seconds) == {"forward_backward", "optimizer"}
    assert stats.num_tokens == sum(
        s.num_tokens for g in make_groups() for s in g.samples if s.reward is not None
    )


def test_phases_before_the_steps_are_timed_with_them(
    make_trainer, make_decoder, make_groups, learn
):
    trainer = make_trainer(
        algo={"use_kl_loss": True}, reference=make_decoder(), batch={"global_batch_size": 4}
    )
    stats = learn(trainer, make_groups())
    assert set(stats.seconds) == {"log_probs", "ref_log_probs", "forward_backward", "optimizer"}


def test_supervised_steps_learn_the_samples_by_heart(make_trainer, make_groups, learn):
    trainer = make_trainer(algo={"loss_type": "sft_loss"}, optim={"lr": 1e-2})
    losses = [learn(trainer, make_groups(1)).rows[0]["loss"] for _ in range(30)]
    assert losses[-1] < losses[0] / 10


def test_policy_steps_make_good_samples_likelier_and_bad_ones_rarer(
    make_trainer, make_groups, learn
):
    trainer = make_trainer(optim={"lr": 1e-3})
    (group,) = make_groups(1)

    def likelihoods():
        with torch.no_grad():
            rows = [logprobs_of(trainer._model.parts[0], s.tokens_T) for s in group.samples]
        return [
            sum(row[t - 1, s.tokens_T[t]].item() for t in np.flatnonzero(s.sampled_T))
            for row, s in zip(rows, group.samples, strict=True)
        ]

    before = likelihoods()
    for _ in range(5):
        learn(trainer, [group])
    moved = np.array(likelihoods()) - before
    rewards = [s.reward for s in group.samples]
    assert moved[np.argmax(rewards)] > 0 > moved[np.argmin(rewards)]


def test_groups_without_any_difference_move_nothing_but_decay(make_trainer, make_groups, learn):
    (group,) = make_groups(1)
    flat = replace(group, samples=tuple(replace(s, reward=1.0) for s in group.samples))
    trainer = make_trainer(optim={"weight_decay": 0.0})
    before = trainer.weights(0).digests
    (row,) = learn(trainer, [flat]).rows
    assert row["grad_norm"] == 0.0 and trainer.weights(1).digests == before


def test_a_rollout_without_any_verdict_is_a_step_of_zero_gradient(make_trainer, make_groups, learn):
    (group,) = make_groups(1)
    missing = replace(group, samples=tuple(replace(s, reward=None) for s in group.samples))
    (row,) = learn(make_trainer(), [missing]).rows
    assert row["grad_norm"] == 0.0 and row["loss"] == 0.0


def test_moments_are_dropped_at_each_rollout_when_asked(make_trainer, make_groups, learn):
    kept = make_trainer()
    reset = make_trainer(optim={"reset_optimizer_states": True})
    for trainer in (kept, reset):
        for seed in range(2):
            learn(trainer, make_groups(seed=seed))
    assert kept._descent.optimizer.tensors()["optimizer.step"] == 2
    assert reset._descent.optimizer.tensors()["optimizer.step"] == 1


def test_weights_are_the_storage_under_hugging_face_names(make_trainer):
    trainer = make_trainer()
    weights = trainer.weights(version=3)
    assert weights.version == 3 and weights.is_shared
    named = dict(weights.named)
    shapes = hugging_face_shapes(trainer._model.parts[0].shape)
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == shapes
    embedding = trainer._model.parts[0].embed.weight
    assert named["model.embed_tokens.weight"].data_ptr() == embedding.data_ptr()
    # storage that is shared is proved as it lies
    assert set(weights.digests) == {name for name, _ in trainer._model.parts[0].named_parameters()}


def test_the_canary_is_the_models_own_word(make_trainer):
    trainer = make_trainer()
    canary = trainer.weights(0).canary
    assert np.array_equal(canary.tokens_T, canary_tokens(61))
    with torch.no_grad():
        all_TV = logprobs_of(trainer._model.parts[0], canary.tokens_T)
    wanted = [0.0] + [
        all_TV[t - 1, canary.tokens_T[t]].item() for t in range(1, len(canary.tokens_T))
    ]
    assert canary.logprobs_T.tolist() == pytest.approx(wanted, abs=1e-5)
