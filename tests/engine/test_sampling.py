"""What is drawn follows the distribution that the settings describe."""

import numpy as np
import pytest

NUM_DRAWS = 4000


def first_tokens(engine, ask, **sampling):
    """One token after the same prompt, by many keys, and what the canary says of all tokens."""
    requests = [
        ask(5, sample, length=12, max_new_tokens=1, **sampling) for sample in range(NUM_DRAWS)
    ]
    prompt_T = requests[0].tokens_T
    drawn = np.array([done.tokens_C[0] for done in engine.generate(requests)])
    logprobs_V = np.array(
        [engine.canary(np.append(prompt_T, token))[-1] for token in range(61)], dtype=np.float64
    )
    return drawn, np.exp(logprobs_V)


def chi_square(drawn, share_V):
    """The statistic over tokens expected five times or more; the rest count as one."""
    expected_V = share_V * NUM_DRAWS
    counts_V = np.bincount(drawn, minlength=61)
    common_V = expected_V >= 5
    observed = np.append(counts_V[common_V], counts_V[~common_V].sum())
    expected = np.append(expected_V[common_V], expected_V[~common_V].sum())
    kept = expected > 0
    assert (observed[~kept] == 0).all()
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    return statistic, int(kept.sum()) - 1


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of(engine_max_running=512, engine_cache_tokens=8192)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.5, "top_k": 10, "top_p": 0.7},
    ],
    ids=str,
)
def test_tokens_follow_the_distribution(engine, ask, sampling):
    drawn, share_V = first_tokens(engine, ask, **sampling)
    share_V = share_V ** (1 / sampling["temperature"])
    share_V /= share_V.sum()
    order_V = np.argsort(-share_V)
    ranked_V = share_V[order_V]
    if "top_k" in sampling:
        ranked_V[sampling["top_k"] :] = 0
        ranked_V /= ranked_V.sum()
    if "top_p" in sampling:
        ranked_V[np.cumsum(ranked_V) - ranked_V >= sampling["top_p"]] = 0
        ranked_V /= ranked_V.sum()
    share_V[order_V] = ranked_V
    statistic, degrees = chi_square(drawn, share_V)
    # the mean of chi-square is its degrees of freedom, its variance twice that
    assert statistic < degrees + 4.5 * np.sqrt(2 * degrees)


def test_temperature_zero_takes_the_likeliest_token(engine, ask):
    requests = [ask(5, sample, length=12, max_new_tokens=1, temperature=0) for sample in range(3)]
    drawn = [int(done.tokens_C[0]) for done in engine.generate(requests)]
    prompt_T = requests[0].tokens_T
    likeliest = np.argmax([engine.canary(np.append(prompt_T, token))[-1] for token in range(61)])
    assert drawn == [likeliest] * 3
