"""The engine says which experts its tokens passed through."""

import asyncio

import numpy as np
import pytest
import torch

from tandem.kernels.attention import packed_attention
from tandem.models.experts import Routing


def _experts(decoder, tokens_T) -> np.ndarray:
    """What a forward pass over the whole sequence takes."""
    length = len(tokens_T)
    bounds_S = torch.tensor([0, length], dtype=torch.int32)
    recorded_TLk = torch.zeros(length, 2, 2, dtype=torch.int16)

    def attend(layer, q_TNH, k_TKH, v_TKH):
        return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, length)

    with torch.no_grad():
        decoder(
            torch.as_tensor(tokens_T).long(),
            torch.arange(length),
            attend,
            routing=Routing(recorded_TLk=recorded_TLk),
        )
    return recorded_TLk.numpy()


def _agrees(decoder, request, completion):
    tokens_T = np.concatenate([request.tokens_T, completion.tokens_C])
    found_TLk = completion.experts_TLk
    assert found_TLk.shape == (len(tokens_T), 2, 2) and found_TLk.dtype == np.int16
    assert (found_TLk[-1] == -1).all()
    assert (found_TLk[:-1] == _experts(decoder, tokens_T)[:-1]).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"is_late": True},
        {"deterministic_mode": True},
        {"engine_prefill_tokens": 8},
        {"engine_cache_tokens": 256},  # so few that sequences lose their blocks
    ],
    ids=str,
)
def test_recorded_experts_are_those_of_the_whole_sequence(mixed, engine_of, ask, settings):
    engine = engine_of(mixed, records_experts=True, **settings)
    # groups share a prompt, whose last block is copied
    requests = [ask(prompt, sample) for prompt in range(4) for sample in range(3)]
    for request, completion in zip(requests, engine.generate(requests), strict=True):
        _agrees(mixed, request, completion)
    assert "engine_cache_tokens" not in settings or engine.num_preempted > 0


def test_experts_of_cached_prefixes_are_known(mixed, engine_of, ask):
    engine = engine_of(mixed, records_experts=True)
    (first,) = engine.generate([ask(length=20)])
    again = ask(tokens=np.concatenate([ask(length=20).tokens_T, first.tokens_C]))
    (second,) = engine.generate([again])
    assert second.num_cached > 20
    _agrees(mixed, again, second)


def test_an_aborted_sequence_says_what_it_knows(mixed, engine_of, ask):
    async def run():
        engine = engine_of(mixed, records_experts=True, engine_prefill_tokens=8)
        requests = [ask(0, length=12, max_new_tokens=90), ask(1, length=40)]
        futures = [engine.add(request) for request in requests]
        for _ in range(3):
            engine.step()
        await engine.abort()
        return requests, [await future for future in futures]

    requests, completions = asyncio.run(run())
    _agrees(mixed, requests[0], completions[0])
    experts_TLk, known = completions[1].experts_TLk, _experts(mixed, requests[1].tokens_T)
    count = int((experts_TLk >= 0).all((1, 2)).sum())
    assert 0 < count < 40 and len(completions[1].tokens_C) == 0
    assert (experts_TLk[:count] == known[:count]).all() and (experts_TLk[count:] == -1).all()


def test_nothing_is_recorded_unless_asked(mixed, engine_of, ask):
    (completion,) = engine_of(mixed).generate([ask()])
    assert completion.experts_TLk is None
