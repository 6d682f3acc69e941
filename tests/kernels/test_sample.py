import pytest
import torch

from tandem.kernels.sample import choose_tokens, uniform, uniform_reference


def _column(value, rows, dtype=torch.float32):
    return torch.full((rows,), value, dtype=dtype)


def _choose(logits, u, temperature=1.0, top_p=1.0, top_k=-1):
    rows = len(logits)
    return choose_tokens(
        logits,
        u,
        _column(temperature, rows),
        _column(top_p, rows),
        _column(top_k, rows, torch.int64),
    )


def _words(rows, seed=0):
    torch.manual_seed(seed)
    return [torch.randint(-(2**63), 2**63 - 1, (rows,)) for _ in range(4)]


def test_uniform_equals_the_reference_in_python_integers():
    words = _words(200)
    found, lists = uniform(*words).tolist(), [word.tolist() for word in words]
    assert found == [uniform_reference(*row) for row in zip(*lists, strict=True)]
    assert found[0] == uniform_reference(*(int(word[0]) for word in words))


def test_uniform_has_known_values():
    # tokens of old runs can be drawn again only while these stay
    assert uniform_reference(0, 0, 0, 0) == 0.1296456182997474
    assert uniform_reference(42, 3, 1, 17) == 0.4686050263099537


@pytest.mark.parametrize("moving", range(4))
def test_uniform_is_uniform_and_neighbours_are_independent(moving):
    count, bins = 100_000, 64
    words = [torch.full((count,), fixed) for fixed in (7, 3, 2, 11)]
    words[moving] = torch.arange(count)
    u = uniform(*words)
    assert u.min() >= 0
    assert u.max() < 1
    hits = torch.histc(u, bins, 0, 1)
    # chi-square with 63 degrees of freedom has standard deviation sqrt(126)
    assert ((hits - count / bins) ** 2 / (count / bins)).sum() < 63 + 5 * 126**0.5
    for distance in (1, 2, 8, 1024):
        pair = torch.stack([u[:-distance], u[distance:]])
        assert torch.corrcoef(pair)[0, 1].abs() < 5 / count**0.5
        cells = torch.histc((pair[0] * 8).floor() * 8 + (pair[1] * 8).floor(), 64, 0, 64)
        expected = (count - distance) / 64
        assert ((cells - expected) ** 2 / expected).sum() < 63 + 5 * 126**0.5


def test_chosen_tokens_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5]])
    rows = 20_000
    u = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    tokens, logprobs = _choose(logits.expand(rows, -1), u, temperature=0.7)
    mass = torch.softmax(logits[0] / 0.7, dim=-1)
    torch.testing.assert_close(tokens.bincount(minlength=5) / rows, mass, rtol=0, atol=2e-4)
    torch.testing.assert_close(logprobs, mass.log()[tokens])


def test_temperature_zero_takes_the_likeliest_token_at_temperature_one():
    logits = torch.randn(20, 31)
    tokens, logprobs = _choose(logits, torch.rand(20).double(), temperature=0.0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).max(-1).values)


def test_a_number_close_to_one_chooses_a_token_that_has_mass():
    logits = torch.tensor([[1.0, 2.0, float("-inf")], [0.0, float("-inf"), float("-inf")]])
    u = torch.full((2,), 1 - 2.0**-53, dtype=torch.float64)
    tokens, _ = _choose(logits, u)
    assert tokens.tolist() == [1, 0]
    tokens, _ = _choose(logits, torch.zeros(2, dtype=torch.float64))
    assert tokens.tolist() == [0, 0]


@pytest.mark.parametrize(("top_p", "top_k"), [(0.6, -1), (1.0, 3), (0.5, 4), (1e-9, -1), (1.0, 1)])
def test_restricted_choice_is_top_k_then_top_p(top_p, top_k):
    logits = torch.randn(1, 12)
    mass = torch.softmax(logits[0].double(), -1)
    order = mass.argsort(descending=True).tolist()
    kept = order[: top_k if top_k > 0 else 12]
    total, nucleus, reached = mass[kept].sum(), [], 0.0
    for token in kept:
        nucleus.append(token)
        reached += mass[token] / total
        if reached >= top_p:
            break
    rows = 5000
    u = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    tokens, logprobs = _choose(logits.expand(rows, -1), u, top_p=top_p, top_k=top_k)
    wanted = torch.zeros(12, dtype=torch.float64)
    wanted[nucleus] = mass[nucleus] / mass[nucleus].sum()
    torch.testing.assert_close(
        tokens.bincount(minlength=12) / rows, wanted.float(), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(logprobs, torch.log_softmax(logits[0], -1)[tokens])


def test_a_restriction_that_restricts_nothing_changes_no_token():
    logits = torch.randn(500, 40)
    u = torch.rand(500).double()
    free, _ = _choose(logits, u)
    for restriction in ({"top_k": 40}, {"top_k": 1000}, {"top_k": 0}, {"top_p": 1.0}):
        assert torch.equal(_choose(logits, u, **restriction)[0], free)
    # nearly nothing: only what lies close to a removed token may move
    assert (_choose(logits, u, top_p=1 - 1e-6)[0] != free).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_token_does_not_depend_on_the_other_rows(dtype):
    rows, vocab = 64, 1000
    logits = (3 * torch.randn(rows, vocab)).to(dtype)
    u = torch.rand(rows).double()
    temperature = torch.tensor([0.0, 0.7, 1.0, 1.3]).repeat(16)
    top_p = torch.tensor([1.0, 1.0, 0.9, 1.0, 0.5, 1.0, 1.0, 1.0]).repeat(8)
    top_k = torch.tensor([-1, 5, -1, -1, 20, -1, -1, 0]).repeat(8)
    columns = (logits, u, temperature, top_p, top_k)
    tokens, logprobs = choose_tokens(*columns)
    for index in (torch.randperm(rows), torch.tensor([3]), torch.arange(9)):
        found = choose_tokens(*(column[index] for column in columns))
        assert torch.equal(found[0], tokens[index])
        assert torch.equal(found[1], logprobs[index])
