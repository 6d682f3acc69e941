"""The tokens and log-probs of a request are a function of it and the weights, of nothing else."""

import dataclasses

import numpy as np
import pytest
import torch

from tandem.kernels.attention import packed_attention
from tandem.kernels.sample import uniform_reference
from tandem.types import Ending


def tokens_of(completions):
    return [completion.tokens_C.tolist() for completion in completions]


@pytest.fixture(scope="module")
def requests(ask):
    """Six prompts, each asked four times, of different lengths and temperatures."""
    return [
        ask(prompt, sample, max_new_tokens=5 + 3 * sample + prompt, temperature=0.7 + 0.1 * sample)
        for prompt in range(6)
        for sample in range(4)
    ]


@pytest.fixture(scope="module")
def alone(engine_of, requests):
    """What each request gets in an engine of its own."""
    return tokens_of(engine_of().generate([request])[0] for request in requests)


@torch.no_grad()
def packed_logits(decoder, tokens_T):
    """Logits by the trainer's form of attention, `[T, V]`."""
    tokens = torch.as_tensor(np.asarray(tokens_T), dtype=torch.int64)
    bounds_S = torch.tensor([0, len(tokens)], dtype=torch.int32)

    def attend(layer, q_TNH, k_TKH, v_TKH):
        return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, len(tokens))

    return decoder.logits(decoder(tokens, torch.arange(len(tokens)), attend))


def test_a_token_is_the_inverse_cdf_of_the_packed_forward_at_its_key(decoder, engine_of, ask):
    request = ask(3, 2, temperature=0.8)
    (completion,) = engine_of().generate([request])
    whole_T = np.concatenate([request.tokens_T, completion.tokens_C])
    start = len(request.tokens_T)
    probs_TV = torch.softmax(packed_logits(decoder, whole_T) / 0.8, dim=-1).double()
    for place in range(start, len(whole_T)):
        total_V = probs_TV[place - 1].cumsum(0)
        u = uniform_reference(7, 3, 2, place) * float(total_V[-1])
        assert int((total_V <= u).sum()) == whole_T[place]


def test_batching_changes_no_token(engine_of, requests, alone):
    assert tokens_of(engine_of().generate(requests)) == alone


def test_order_changes_no_token(engine_of, requests, alone):
    order = np.random.default_rng(1).permutation(len(requests))
    shuffled = engine_of().generate([requests[i] for i in order])
    assert tokens_of(shuffled) == [alone[i] for i in order]


@pytest.mark.parametrize(
    "settings",
    [
        {"engine_block_size": 1},
        {"engine_block_size": 5},
        {"engine_block_size": 64},
        {"engine_prefill_tokens": 1},
        {"engine_prefill_tokens": 7},
        {"engine_max_running": 3},
        {"engine_max_running": 1},
        {"engine_cache_tokens": 96},
        {"is_late": True},
        {"is_late": True, "engine_cache_tokens": 96, "engine_prefill_tokens": 7},
        {"deterministic_mode": True},
    ],
    ids=str,
)
def test_settings_change_no_token(engine_of, requests, alone, settings):
    assert tokens_of(engine_of(**settings).generate(requests)) == alone


def test_logprobs_are_those_of_the_packed_forward(decoder, engine_of, requests):
    completions = engine_of(engine_prefill_tokens=16).generate(requests)
    for request, completion in zip(requests, completions, strict=True):
        whole_T = np.concatenate([request.tokens_T, completion.tokens_C])
        scaled = packed_logits(decoder, whole_T) / request.sampling.temperature
        expected = torch.log_softmax(scaled, dim=-1)[
            torch.arange(len(request.tokens_T) - 1, len(whole_T) - 1),
            torch.as_tensor(completion.tokens_C, dtype=torch.int64),
        ]
        np.testing.assert_allclose(completion.logprobs_C, expected.numpy(), atol=1e-4)


def test_a_group_computes_its_prompt_once(engine_of, ask):
    engine = engine_of()
    group = [ask(1, sample, length=29) for sample in range(8)]
    first, *others = engine.generate(group)
    assert engine.stats().num_prefill_tokens == 29
    assert first.num_cached == 0
    assert [other.num_cached for other in others] == [29] * 7


def test_a_chunked_group_computes_its_prompt_once(engine_of, ask):
    engine = engine_of(engine_prefill_tokens=6)
    engine.generate([ask(1, sample, length=29) for sample in range(8)])
    assert engine.stats().num_prefill_tokens == 29


def test_a_later_sample_reuses_the_full_blocks_of_the_prompt(engine_of, ask):
    engine = engine_of(engine_block_size=8)
    engine.generate([ask(1, 0, length=29)])
    (later,) = engine.generate([ask(1, 1, length=29)])
    assert later.num_cached == 24
    assert engine.stats().num_prefill_tokens == 29 + 5


def test_a_later_turn_reuses_what_was_generated(engine_of, ask):
    engine = engine_of(engine_block_size=8)
    request = ask(1, 0, length=29, max_new_tokens=30)
    (turn,) = engine.generate([request])
    history_T = np.concatenate([request.tokens_T, turn.tokens_C, [5, 6, 7]])
    (later,) = engine.generate([ask(1, 1, tokens=history_T)])
    assert later.num_cached == (29 + 30 - 1) // 8 * 8


@pytest.mark.parametrize("is_late", [False, True])
def test_preemption_changes_no_token(engine_of, ask, is_late):
    requests = [ask(prompt, length=9, max_new_tokens=40) for prompt in range(5)]
    engine = engine_of(engine_cache_tokens=96, is_late=is_late)
    completions = engine.generate(requests)
    assert tokens_of(completions) == tokens_of(engine_of().generate(requests))
    assert engine.num_preempted > 0
    assert engine.stats().num_free_blocks == engine.stats().num_cache_blocks


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_sequence_that_is_resumed_gets_the_tokens_it_would_have_got(engine_of, ask, cut):
    request = ask(2, 1, max_new_tokens=20)
    (whole,) = engine_of().generate([request])
    start = dataclasses.replace(
        request, sampling=dataclasses.replace(request.sampling, max_new_tokens=cut)
    )
    engine = engine_of()
    (first,) = engine.generate([start])
    rest = dataclasses.replace(
        request,
        tokens_T=np.concatenate([request.tokens_T, first.tokens_C]),
        sampling=dataclasses.replace(request.sampling, max_new_tokens=20 - cut),
    )
    (second,) = engine.generate([rest])
    joined = np.concatenate([first.tokens_C, second.tokens_C])
    assert joined.tolist() == whole.tokens_C.tolist()


def test_no_new_tokens_wanted_is_an_ending_at_once(engine_of, ask):
    engine = engine_of()
    (completion,) = engine.generate([ask(max_new_tokens=0)])
    assert completion.ending is Ending.LENGTH
    assert len(completion.tokens_C) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"engine_prefill_tokens": 7},
        {"engine_max_running": 3},
        {"engine_cache_tokens": 96, "is_late": True},
    ],
    ids=str,
)
def test_in_deterministic_mode_nothing_changes_a_bit(engine_of, requests, settings):
    alone = [engine_of(deterministic_mode=True).generate([request])[0] for request in requests[:9]]
    batched = engine_of(deterministic_mode=True, **settings).generate(requests)
    for one, other in zip(alone, batched, strict=False):
        assert one.tokens_C.tolist() == other.tokens_C.tolist()
        assert one.logprobs_C.tobytes() == other.logprobs_C.tobytes()


def test_in_deterministic_mode_a_resumed_sequence_has_the_same_bits(engine_of, ask):
    request = ask(2, 1, max_new_tokens=20)
    engine = engine_of(deterministic_mode=True)
    (whole,) = engine.generate([request])
    for cut in (1, 7, 19):
        rest = dataclasses.replace(
            request,
            tokens_T=np.concatenate([request.tokens_T, whole.tokens_C[:cut]]),
            sampling=dataclasses.replace(request.sampling, max_new_tokens=20 - cut),
        )
        engine.forget()
        (second,) = engine.generate([rest])
        assert second.tokens_C.tolist() == whole.tokens_C[cut:].tolist()
        assert second.logprobs_C.tobytes() == whole.logprobs_C[cut:].tobytes()
