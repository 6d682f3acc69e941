import pytest
import torch

from tandem.kernels.head import head_logits, token_logprobs


def _case(rows=37, width=16, vocab=53, dtype=torch.float32, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    draw = {"generator": generator, "device": "cpu"}
    device = torch.get_default_device()
    hidden = torch.randn(rows, width, **draw).to(device, dtype).requires_grad_()
    weight = torch.randn(vocab, width, **draw).mul(0.5).to(device, dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab, (rows,), **draw).to(device)


def _plain(hidden, weight, targets, temperature=1.0):
    logp = torch.log_softmax((hidden @ weight.T).float() / temperature, dim=-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk", [-1, 1, 8, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_and_gradients_equal_the_plain_formula(chunk, temperature):
    hidden, weight, targets = _case()
    grad = torch.randn(len(targets))
    logprobs, entropy = token_logprobs(hidden, weight, targets, temperature, chunk)
    assert entropy is None
    found = torch.autograd.grad(logprobs, (hidden, weight), grad)
    wanted_logprobs, _ = _plain(hidden, weight, targets, temperature)
    wanted = torch.autograd.grad(wanted_logprobs, (hidden, weight), grad)
    torch.testing.assert_close(logprobs, wanted_logprobs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept_rows", [1, 20, 37, 1000])
def test_kept_logprobs_change_nothing_but_the_work(kept_rows):
    hidden, weight, targets = _case()
    grads = torch.randn(2, len(targets))

    def gradients(scores):
        return torch.autograd.grad(scores, (hidden, weight), tuple(grads), retain_graph=True)

    how = {"temperature": 0.9, "chunk": 8, "entropy_needs_grad": True}
    plain = token_logprobs(hidden, weight, targets, **how)
    kept = token_logprobs(hidden, weight, targets, **how, keep_bytes=kept_rows * 53 * 4)
    assert torch.equal(kept[0], plain[0])
    wanted = gradients(plain)
    for found in (gradients(kept), gradients(kept)):  # the second time they are computed again
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_entropy_has_a_gradient_only_when_asked():
    hidden, weight, targets = _case()
    logprobs, entropy = token_logprobs(hidden, weight, targets, 0.9, 8, want_entropy=True)
    _, wanted = _plain(hidden, weight, targets, 0.9)
    torch.testing.assert_close(entropy, wanted)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_entropy_gradient_equals_the_plain_formula():
    hidden, weight, targets = _case()
    grads = torch.randn(2, len(targets))
    found = token_logprobs(hidden, weight, targets, 0.9, 8, entropy_needs_grad=True)
    wanted = _plain(hidden, weight, targets, 0.9)
    found = torch.autograd.grad(found, (hidden, weight), tuple(grads))
    wanted = torch.autograd.grad(wanted, (hidden, weight), tuple(grads))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bf16_stays_close_to_fp32():
    hidden, weight, targets = _case(dtype=torch.bfloat16)
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk=8, keep_bytes=20 * 53 * 2)
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    wanted, _ = _plain(*wide, targets)
    torch.testing.assert_close(logprobs, wanted, rtol=0.02, atol=0.05)
    found = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    for one, other in zip(found, torch.autograd.grad(wanted.sum(), wide), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("vocab", [141, 282, 512, 5001])
@torch.no_grad()
def test_logits_of_a_row_do_not_depend_on_the_number_of_rows(vocab):
    hidden, weight, _ = _case(rows=300, width=512, vocab=vocab, dtype=torch.bfloat16)
    whole = head_logits(hidden, weight)
    for rows in (1, 2, 4, 8, 16, 24, 48, 96, 160, 256):
        assert torch.equal(head_logits(hidden[:rows], weight), whole[:rows]), rows


def test_top_mask_normalises_over_the_named_tokens_and_the_target():
    hidden, weight, _ = _case(rows=4)
    targets = torch.tensor([3, 7, 1, 50])
    ids, starts = torch.tensor([3, 9, 20, 5, 6]), torch.tensor([0, 3, 3, 5, 5])
    allowed = [[3, 9, 20], list(range(53)), [5, 6, 1], list(range(53))]
    logprobs, entropy = token_logprobs(
        hidden, weight, targets, 0.8, 3, want_entropy=True, top_mask=(ids, starts)
    )
    scaled = hidden @ weight.T / 0.8
    wanted = torch.stack(
        [
            scaled[row, target] - scaled[row, torch.tensor(names)].logsumexp(0)
            for row, (target, names) in enumerate(zip(targets, allowed, strict=True))
        ]
    )
    torch.testing.assert_close(logprobs, wanted)
    torch.testing.assert_close(entropy, _plain(hidden, weight, targets, 0.8)[1])
    found = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    for one, other in zip(found, torch.autograd.grad(wanted.sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_rows_give_no_logprobs_and_a_zero_gradient():
    hidden, weight, targets = _case(rows=0)
    logprobs, _ = token_logprobs(hidden, weight, targets)
    assert logprobs.shape == (0,)
    (grad,) = torch.autograd.grad(logprobs.sum(), (weight,))
    assert not grad.any()


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets = _case()
    logprobs, _ = token_logprobs(hidden, weight.detach(), targets, chunk=8)
    (grad,) = torch.autograd.grad(logprobs.sum(), (hidden,))
    (wanted,) = torch.autograd.grad(_plain(hidden, weight.detach(), targets)[0].sum(), (hidden,))
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)
