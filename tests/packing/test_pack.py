import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from tandem.algo import advantage, loss
from tandem.config import AlgoConfig, BatchConfig
from tandem.packing import columns, num_steps, pack, scoring_rows
from tandem.parallel import Layout
from tandem.types import Ending, Group, Prompt, Sample

VOCAB = 50


def sample(rng, index, *, rollout=-1, reward=0.0, prompt=3, response=5, masked=(), **more):
    length = prompt + response
    sampled_T = np.arange(length) >= prompt
    sampled_T[list(masked)] = False
    return Sample(
        index=index,
        position=index,
        rollout=rollout,
        tokens_T=rng.integers(1, VOCAB, length).astype(np.int32),
        sampled_T=sampled_T,
        logprobs_T=np.where(sampled_T, -rng.random(length), 0).astype(np.float32),
        version_T=np.full(length, -1, np.int32),
        ending=more.pop("ending", Ending.STOP),
        text="",
        reward=reward,
        **more,
    )


def group_of(*samples):
    prompt = Prompt(index=0, tokens_T=np.ones(1, np.int32), text="", content="")
    return Group(prompt=prompt, samples=samples)


def mixed_groups():
    """Three groups with fanned-out rollouts, missing verdicts, holes and samples without tokens."""
    rng = np.random.default_rng(5)
    shapes = [(3, 5), (2, 11), (7, 4), (1, 1), (4, 17), (6, 2), (2, 3), (5, 9), (3, 8)]
    rows = [
        sample(rng, i, prompt=p, response=r, reward=float(rng.random()), rollout=min(i, 6))
        for i, (p, r) in enumerate(shapes)
    ]
    rows[1] = replace(rows[1], reward=None)
    rows[4] = replace(rows[4], sampled_T=rows[4].sampled_T & (np.arange(21) % 3 != 0))
    rows[5] = replace(rows[5], ending=Ending.ERROR)
    rows[8] = replace(rows[8], sampled_T=np.zeros(11, bool))
    groups = [group_of(*rows[:3]), group_of(*rows[3:6]), group_of(*rows[6:])]
    return [
        replace(
            group,
            reference_logprobs=tuple(
                np.where(s.sampled_T, -rng.random(s.num_tokens), 0).astype(np.float32)
                for s in group.samples
            ),
        )
        for group in groups
    ]


def test_everything_is_shifted_once_and_the_last_position_predicts_nothing():
    rng = np.random.default_rng(0)
    one, two = sample(rng, 0, reward=1.0), sample(rng, 1, prompt=2, response=2, reward=0.0)
    column = tuple(np.arange(s.num_tokens, dtype=np.float32) * s.sampled_T for s in (one, two))
    group = replace(group_of(one, two), old_logprobs=column)
    ((row,),) = pack([group], Layout(), BatchConfig(micro_batch_size=2), AlgoConfig())
    assert row.bounds_S.tolist() == [0, 8, 12] and row.bounds_S.dtype == torch.int32
    assert row.tokens_T.tolist() == [*one.tokens_T, *two.tokens_T]
    assert row.targets_T.tolist() == [*one.tokens_T[1:], 0, *two.tokens_T[1:], 0]
    assert row.positions_T.tolist() == [*range(8), *range(4)]
    assert row.mask_T.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert row.old_logprobs_T.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0, 2, 3, 0]
    assert row.engine_logprobs_T.tolist() == [*one.logprobs_T[1:], 0, *two.logprobs_T[1:], 0]
    assert row.longest == 8 and row.num_tokens == 12
    assert row.advantages_T is None and row.reference_logprobs_T is None


def test_padding_is_a_sequence_of_its_own_without_weight():
    rng = np.random.default_rng(0)
    group = group_of(sample(rng, 0, prompt=1, response=4))
    ((row,),) = pack([group], Layout(row_multiple=16), BatchConfig(), AlgoConfig())
    assert row.bounds_S.tolist() == [0, 5, 16]
    assert row.longest == 11 and row.num_tokens == 5 and len(row.tokens_T) == 16
    assert row.weight_T[4:].abs().sum() == row.mask_T[4:].sum() == 0


def test_a_row_without_samples_is_all_padding_and_has_the_columns_of_the_others():
    rng = np.random.default_rng(0)
    group = group_of(*[sample(rng, i, reward=float(i)) for i in range(3)])
    groups = advantage([group], AlgoConfig())
    ((_, row),) = pack(groups, Layout(data_rank=1, data_size=2), BatchConfig(), AlgoConfig())
    assert row.num_tokens == 0 and row.tokens_T.tolist() == [0]
    assert row.weight_T.tolist() == [0] and row.advantages_T.tolist() == [0]


def expected_weights(groups, algo):
    """The weight of every trained token by the dialect's formula, in exact fractions."""
    samples = [s for group in groups for s in group.samples]
    counts = {
        s.index: 0 if s.reward is None or s.ending is Ending.ERROR else int(s.sampled_T[1:].sum())
        for s in samples
    }
    rollouts = {s.rollout for s in samples}
    if algo.calculate_per_token_loss:
        total = sum(max(count, 1) for count in counts.values())
        return {s.index: Fraction(1, total) for s in samples}
    sums = {r: sum(counts[s.index] for s in samples if s.rollout == r) for r in rollouts}
    return {s.index: Fraction(1, max(sums[s.rollout], 1) * len(rollouts)) for s in samples}


@pytest.mark.parametrize("is_per_token", [False, True])
def test_weights_are_the_dialects_denominators(is_per_token):
    algo = AlgoConfig(calculate_per_token_loss=is_per_token)
    groups = mixed_groups()
    (rows,) = pack(groups, Layout(), BatchConfig(), algo)
    wanted = expected_weights(groups, algo)
    trained = [
        s
        for group in groups
        for s in group.samples
        if s.reward is not None and s.ending is not Ending.ERROR and s.sampled_T[1:].any()
    ]
    assert len(rows) == len(trained) == 6
    for row, one in zip(rows, trained, strict=True):
        assert row.tokens_T.tolist() == one.tokens_T.tolist()
        exact = np.float32(float(wanted[one.index]))
        assert row.weight_T[:-1].tolist() == [exact * m for m in one.sampled_T[1:]]


def test_the_exact_weights_of_a_small_step():
    rng = np.random.default_rng(0)
    # rollout 0: two samples with 2 + 6 tokens; rollout 2: 4 tokens; rollout 3: no verdict
    samples = [
        sample(rng, 0, response=2, rollout=0, reward=1.0),
        sample(rng, 1, response=6, rollout=0, reward=1.0),
        sample(rng, 2, response=4, reward=0.0),
        sample(rng, 3, response=4, reward=None),
    ]
    groups = [group_of(*samples)]
    cfg = BatchConfig(micro_batch_size=4)
    ((row,),) = pack(groups, Layout(), cfg, AlgoConfig())
    assert sorted(set(row.weight_T.tolist())) == pytest.approx([0, 1 / 24, 1 / 12])
    assert row.weight_T.sum().item() == pytest.approx(2 / 3)  # the missing one counts below
    ((row,),) = pack(groups, Layout(), cfg, AlgoConfig(calculate_per_token_loss=True))
    assert sorted(set(row.weight_T.tolist())) == pytest.approx([0, 1 / 13])


def test_supervised_samples_need_no_verdict():
    rng = np.random.default_rng(0)
    groups = [group_of(sample(rng, 0, reward=None))]
    ((row,),) = pack(groups, Layout(), BatchConfig(), AlgoConfig(loss_type="sft_loss"))
    assert row.mask_T.sum() == 5


def test_a_first_token_is_never_trained():
    rng = np.random.default_rng(0)
    groups = [group_of(sample(rng, 0, prompt=0, response=4))]
    ((row,),) = pack(groups, Layout(), BatchConfig(), AlgoConfig())
    assert row.mask_T.tolist() == [1, 1, 1, 0]
    assert row.weight_T.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_a_column_that_only_some_groups_have_is_our_fault():
    rng = np.random.default_rng(0)
    whole = group_of(sample(rng, 0))
    half = replace(whole, old_logprobs=(np.zeros(8, np.float32),))
    with pytest.raises(AssertionError, match="old_logprobs is there for 1 of 2"):
        pack([whole, half], Layout(), BatchConfig(), AlgoConfig())


@pytest.mark.parametrize("layout", [Layout(), Layout(row_multiple=8)])
@pytest.mark.parametrize("budget", [8, 30, 1000])
def test_scores_come_back_to_the_tokens_they_speak_of(layout, budget):
    groups = mixed_groups()
    cfg = BatchConfig(
        use_dynamic_batch_size=True, max_tokens_per_gpu=9, log_probs_max_tokens_per_gpu=budget
    )
    rows = scoring_rows(groups, layout, cfg, AlgoConfig())
    # a score that tells which token it is about
    scores = [row.batch.targets_T.numpy().astype(np.float32) for row in rows]
    for group, column in zip(groups, columns(groups, rows, scores), strict=True):
        for one, column_T in zip(group.samples, column, strict=True):
            is_scored = one.reward is not None and one.ending is not Ending.ERROR
            wanted_T = one.tokens_T * one.sampled_T * is_scored
            assert column_T[1:].tolist() == wanted_T[1:].tolist() and column_T[0] == 0


def test_scoring_rows_hold_the_same_samples_as_the_rows_of_the_steps():
    groups = mixed_groups()
    cfg = BatchConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=24, global_batch_size=3)
    steps = pack(groups, Layout(), cfg, AlgoConfig())
    rows = scoring_rows(groups, Layout(), cfg, AlgoConfig())
    assert len(steps) == num_steps(groups, cfg) == 2
    packed = [batch.tokens_T.tolist() for step in steps for batch in step]
    assert [row.batch.tokens_T.tolist() for row in rows] == packed


PACKINGS = [
    (BatchConfig(micro_batch_size=1), 1),
    (BatchConfig(micro_batch_size=2), 1),
    (BatchConfig(micro_batch_size=99), 1),
    (BatchConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=16), 1),
    (BatchConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=40, balance_by_flops=True), 1),
    (BatchConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=500), 3),
    (BatchConfig(micro_batch_size=2, balance_data=True), 2),
    (BatchConfig(micro_batch_size=1), 4),
]


def learn(groups, cfg, algo, size, row_multiple, dtype):
    """Loss, metrics and gradient of one step, with a small causal model summed over data ranks."""
    generator = torch.Generator().manual_seed(1)
    table_VV = torch.randn(VOCAB, VOCAB, generator=generator, dtype=dtype).requires_grad_()
    totals = {}
    for rank in range(size):
        layout = Layout(data_rank=rank, data_size=size, row_multiple=row_multiple)
        (batches,) = pack(groups, layout, cfg, algo)
        for row in batches:
            logprobs = []
            bounds = row.bounds_S.tolist()
            for start, end in itertools.pairwise(bounds):
                # each position sees the mean of its own sequence so far
                seen_TV = table_VV[row.tokens_T[start:end]].cumsum(0)
                seen_TV = seen_TV / (row.positions_T[start:end, None] + 1)
                logprobs.append(seen_TV.log_softmax(-1))
            all_TV = torch.cat(logprobs)
            logprobs_T = all_TV.gather(1, row.targets_T[:, None])[:, 0] * row.mask_T
            entropy_T = -(all_TV.exp() * all_TV).sum(-1)
            value, metrics = loss(row, logprobs_T, entropy_T, algo)
            value.backward()
            for name, metric in metrics.items():
                totals[name] = totals.get(name, 0.0) + metric.item()
    return totals, table_VV.grad


@pytest.mark.parametrize("is_per_token", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_metrics_and_gradient_do_not_depend_on_the_packing(is_per_token, dtype, bound):
    algo = AlgoConfig(
        calculate_per_token_loss=is_per_token, use_kl_loss=True, kl_loss_coef=0.1,
        kl_loss_type="low_var_kl", entropy_coef=0.01, use_rollout_logprobs=True,
    )  # fmt: skip
    groups = advantage(mixed_groups(), algo)
    wanted, wanted_grad = learn(groups, BatchConfig(), algo, 1, 1, dtype)
    assert wanted_grad.abs().max() > 1e-3
    for cfg, size in PACKINGS:
        for row_multiple in (1, 32):
            totals, grad = learn(groups, cfg, algo, size, row_multiple, dtype)
            assert totals == pytest.approx(wanted, rel=bound), (cfg, size)
            assert (grad - wanted_grad).abs().max() <= bound * wanted_grad.abs().max()


def test_gradient_and_metrics_are_the_formula_over_whole_sequences():
    """No packing at all: the mean over rollouts of token means, written out in float64."""
    algo = AlgoConfig(use_rollout_logprobs=True)
    groups = advantage(mixed_groups(), algo)
    packed, packed_grad = learn(groups, PACKINGS[3][0], algo, 1, 8, torch.float64)
    generator = torch.Generator().manual_seed(1)
    table_VV = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64).requires_grad_()
    pairs = [(s, a) for g in groups for s, a in zip(g.samples, g.advantages, strict=True)]
    terms, sizes = {}, {}
    for one, advantage_T in pairs:
        terms.setdefault(one.rollout, 0.0)
        sizes.setdefault(one.rollout, 0)
        if one.reward is None or one.ending is Ending.ERROR:
            continue
        for t in range(1, one.num_tokens):
            if not one.sampled_T[t]:
                continue
            seen_V = table_VV[torch.from_numpy(one.tokens_T[:t].astype(np.int64))].mean(0)
            logprob = seen_V.log_softmax(-1)[one.tokens_T[t]]
            ratio = (logprob - float(one.logprobs_T[t])).exp()
            a = float(advantage_T[t])
            bounded = torch.clamp(ratio, 0.8, 1.2)
            terms[one.rollout] = terms[one.rollout] + torch.maximum(-ratio * a, -bounded * a)
            sizes[one.rollout] += 1
    wanted = sum(terms[r] / max(sizes[r], 1) for r in terms) / len(terms)
    wanted.backward()
    assert packed["pg_loss"] == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.allclose(packed_grad, table_VV.grad, rtol=1e-5, atol=1e-9)
