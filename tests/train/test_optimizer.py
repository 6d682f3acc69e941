import math
from dataclasses import replace

import pytest
import torch

from tandem.config import OptimConfig
from tandem.train import AdamW
from tandem.train.optimizer import global_norm

torch.set_num_threads(1)

CFG = OptimConfig(weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.98, clip_grad=1.0)
FULL = {"exp_avg_dtype": "fp32", "exp_avg_sq_dtype": "fp32"}
SHAPES = {"matrix": (3, 4), "table": (5, 2), "norm": (4,)}


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }


def gradients(seed, scale=1.0):
    generator = torch.Generator().manual_seed(100 + seed)
    return {n: torch.randn(shape, generator=generator) * scale for n, shape in SHAPES.items()}


def feed(named, grads):
    """Backpropagates `grads` as autograd would."""
    sum((named[name] * grad.to(named[name].dtype)).sum() for name, grad in grads.items()).backward()


class PlainAdamW:
    """The textbook in float64 lists."""

    def __init__(self, named, cfg):
        self.cfg, self.t = cfg, 0
        self.p = {n: p.detach().double().flatten().tolist() for n, p in named.items()}
        self.m = {n: [0.0] * len(p) for n, p in self.p.items()}
        self.v = {n: [0.0] * len(p) for n, p in self.p.items()}

    def step(self, grads, lr):
        self.t += 1
        flat = {n: g.double().flatten().tolist() for n, g in grads.items()}
        norm = math.sqrt(sum(x * x for g in flat.values() for x in g))
        factor = min(1.0, self.cfg.clip_grad / (norm + 1e-6)) if self.cfg.clip_grad else 1.0
        b1, b2 = self.cfg.adam_beta1, self.cfg.adam_beta2
        for name, p in self.p.items():
            decay = self.cfg.weight_decay if len(SHAPES[name]) > 1 else 0.0
            for i, raw in enumerate(flat[name]):
                g = raw * factor
                self.m[name][i] = b1 * self.m[name][i] + (1 - b1) * g
                self.v[name][i] = b2 * self.v[name][i] + (1 - b2) * g * g
                m_hat = self.m[name][i] / (1 - b1**self.t)
                v_hat = self.v[name][i] / (1 - b2**self.t)
                p[i] -= lr * (m_hat / (math.sqrt(v_hat) + self.cfg.adam_eps) + decay * p[i])
        return norm


@pytest.mark.parametrize("clip_grad", [0.0, 1.0, 1000.0])
def test_steps_are_those_of_the_textbook(clip_grad):
    cfg = OptimConfig(weight_decay=0.1, adam_beta2=0.98, clip_grad=clip_grad)
    named = parameters()
    plain, adam = PlainAdamW(named, cfg), AdamW(named.items(), cfg)
    for step in range(6):
        grads = gradients(step)
        feed(named, grads)
        lr = 0.01 * (step + 1)
        assert adam.step(lr).item() == pytest.approx(plain.step(grads, lr), rel=1e-6)
    for name, parameter in named.items():
        assert parameter.flatten().tolist() == pytest.approx(plain.p[name], rel=1e-5, abs=1e-6)


def test_bf16_parameters_are_the_rounded_masters_which_are_the_textbooks():
    named = parameters(torch.bfloat16)
    plain, adam = PlainAdamW(named, CFG), AdamW(named.items(), CFG)
    storage = {name: parameter.data_ptr() for name, parameter in named.items()}
    for step in range(6):
        grads = {n: g.bfloat16() for n, g in gradients(step).items()}
        feed(named, grads)
        adam.step(1e-4)
        plain.step(grads, 1e-4)
    masters = {n.removeprefix("optimizer.master."): t for n, t in adam.tensors().items()}
    for name, parameter in named.items():
        assert masters[name].flatten().tolist() == pytest.approx(plain.p[name], rel=1e-5, abs=1e-6)
        assert torch.equal(parameter, masters[name].bfloat16())
        assert parameter.data_ptr() == storage[name], "an engine may share this storage"


def test_steps_too_small_for_bf16_still_add_up():
    named = parameters(torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    adam = AdamW(named.items(), OptimConfig(weight_decay=0.0))
    for _ in range(300):
        feed(named, {n: torch.ones(shape) for n, shape in SHAPES.items()})
        adam.step(1e-4)
    for name, parameter in named.items():
        moved = (before[name] - parameter).float()
        assert moved.mean().item() == pytest.approx(0.03, rel=0.05)


def test_gradients_of_bf16_parameters_are_summed_in_fp32():
    named = parameters(torch.bfloat16)
    adam = AdamW(named.items(), OptimConfig(clip_grad=0.0))
    # 256 + 1 is 256 in bf16, 300 times over
    feed(named, {n: torch.full(shape, 256.0) for n, shape in SHAPES.items()})
    for _ in range(300):
        feed(named, {n: torch.ones(shape) for n, shape in SHAPES.items()})
    count = sum(math.prod(shape) for shape in SHAPES.values())
    assert adam.step(0.0).item() == pytest.approx(556.0 * math.sqrt(count), rel=1e-6)


def test_gradients_of_several_batches_add_up():
    once, twice = parameters(), parameters()
    one, other = AdamW(once.items(), CFG), AdamW(twice.items(), CFG)
    first, second = gradients(1), gradients(2)
    feed(once, {name: first[name] + second[name] for name in SHAPES})
    feed(twice, first)
    feed(twice, second)
    one.step(0.1)
    other.step(0.1)
    for name in SHAPES:
        assert torch.allclose(once[name], twice[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, dtype):
    named, untouched = parameters(dtype), parameters(dtype)
    adam, other = AdamW(named.items(), CFG), AdamW(untouched.items(), CFG)
    for pair in ((named, adam), (untouched, other)):
        feed(pair[0], gradients(0))
        pair[1].step(0.1)
    before = {name: tensor.clone() for name, tensor in adam.tensors().items()}
    poisoned = gradients(1)
    poisoned["norm"][2] = bad
    feed(named, poisoned)
    assert not math.isfinite(adam.step(0.1).item())
    for name, tensor in adam.tensors().items():
        assert torch.equal(tensor, before[name])
    # and the next step is as if the bad one had never been
    for pair in ((named, adam), (untouched, other)):
        feed(pair[0], gradients(2))
        pair[1].step(0.1)
    for name in SHAPES:
        assert torch.equal(named[name], untouched[name])


def test_gradients_are_gone_after_a_step():
    for dtype in (torch.float32, torch.bfloat16):
        named = parameters(dtype)
        adam = AdamW(named.items(), CFG)
        feed(named, gradients(0))
        adam.step(0.1)
        assert all(parameter.grad is None for parameter in named.values())
        with pytest.raises(AssertionError, match="no gradient reached matrix"):
            adam.step(0.1)


def test_forgetting_makes_it_a_fresh_optimizer():
    used, fresh = parameters(), parameters(seed=1)
    adam = AdamW(used.items(), CFG)
    feed(used, gradients(0))
    adam.step(0.1)
    adam.forget()
    with torch.no_grad():
        for name in SHAPES:
            used[name].copy_(fresh[name])
    other = AdamW(fresh.items(), CFG)
    for named, each in ((used, adam), (fresh, other)):
        feed(named, gradients(3))
        each.step(0.1)
    for name in SHAPES:
        assert torch.equal(used[name], fresh[name])


def test_without_a_state_every_step_is_the_first_of_a_fresh_optimizer():
    cfg = replace(CFG, use_stateless_adam=True)
    named, other = parameters(), parameters()
    stateless = AdamW(named.items(), cfg)
    assert set(stateless.tensors()) == {"optimizer.step"}
    for step in range(3):
        fresh = AdamW(other.items(), CFG)
        for pair in ((named, stateless), (other, fresh)):
            feed(pair[0], gradients(step))
            pair[1].step(0.1)
    for name in SHAPES:
        assert torch.equal(named[name], other[name])


def test_adopted_weights_are_the_new_masters():
    named = parameters(torch.bfloat16)
    adam = AdamW(named.items(), CFG)
    with torch.no_grad():
        named["norm"].fill_(2.5)
    adam.adopt()
    assert (adam.tensors()["optimizer.master.norm"] == 2.5).all()


def test_an_fp32_parameter_is_its_own_master():
    adam = AdamW(parameters().items(), CFG)
    assert not [name for name in adam.tensors() if name.startswith("optimizer.master.")]


def test_the_norm_is_over_all_tensors_together():
    grads = gradients(0)
    exact = math.sqrt(sum(x * x for g in grads.values() for x in g.double().flatten().tolist()))
    assert global_norm(grads.values()).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_in_host_memory_changes_no_bit(dtype):
    plain, hosted = parameters(dtype), parameters(dtype)
    here = AdamW(plain.items(), CFG)
    there = AdamW(hosted.items(), replace(CFG, optimizer_cpu_offload=True))
    for seed in range(3):
        feed(plain, gradients(seed))
        feed(hosted, gradients(seed))
        assert torch.equal(here.step(1e-2), there.step(1e-2))
    assert all(torch.equal(plain[name], hosted[name]) for name in SHAPES)


def test_moments_in_bf16_take_half_and_stay_near():
    exact, rounded = parameters(), parameters()
    low = replace(CFG, exp_avg_dtype="bf16", exp_avg_sq_dtype="bf16", adam_beta2=0.95)
    one, two = AdamW(exact.items(), replace(low, **FULL)), AdamW(rounded.items(), low)
    for seed in range(5):
        feed(exact, gradients(seed))
        feed(rounded, gradients(seed))
        one.step(1e-2)
        two.step(1e-2)
    moments = [t for name, t in two.tensors().items() if "exp_avg" in name]
    assert len(moments) == 2 * len(SHAPES) and {t.dtype for t in moments} == {torch.bfloat16}
    for name in SHAPES:
        gap = (exact[name] - rounded[name]).abs().max().item()
        assert 0 < gap < 5e-2 * 1e-2 * 5, "a few percent of the way that five steps went"
