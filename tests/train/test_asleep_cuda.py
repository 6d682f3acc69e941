"""Optimizer state that sleeps gives its memory back to the driver, and wakes with every bit."""

import gc

import pytest
import torch

from tandem.config import OptimConfig
from tandem.train import AdamW

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MIB = 2**20
SHAPES = {"one": (4096, 4096), "two": (6000, 3001), "norm": (4096,)}


def made(seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    named = {
        name: torch.nn.Parameter(
            torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        )
        for name, shape in SHAPES.items()
    }
    return named, AdamW(named.items(), OptimConfig(weight_decay=0.1))


def stepped(named, optimizer, seed):
    generator = torch.Generator("cuda").manual_seed(100 + seed)
    loss = sum((p * torch.randn(p.shape, generator=generator, device="cuda")).sum()
               for p in named.values())  # fmt: skip
    loss.backward()
    optimizer.step(1e-3)


def free():
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def test_the_driver_has_the_memory_while_the_state_sleeps():
    torch.ones(4096, 4096, device="cuda").matmul(torch.ones(4096, 4096, device="cuda"))
    named, optimizer = made()
    stepped(named, optimizer, 0)
    wanted = {key: tensor.cpu() for key, tensor in optimizer.tensors().items()}
    for _ in range(3):
        awake = free()
        optimizer.sleeper.sleep()
        freed = free() - awake
        # norms share 2 MiB with other small tensors
        assert freed >= optimizer.sleeper.num_bytes - 4 * MIB, (freed, optimizer.sleeper.num_bytes)
        state = optimizer.sleeper.tensors().values()
        assert all(tensor.is_pinned() and not tensor.is_cuda for tensor in state)
        optimizer.sleeper.wake()
        product = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):  # beside the copies
            product = torch.tanh(product @ product)
        for key, tensor in optimizer.tensors().items():
            assert tensor.is_cuda and torch.equal(tensor.cpu(), wanted[key]), key
        del product
        assert abs(free() - awake) < 64 * MIB


def test_steps_between_naps_are_those_of_one_that_never_slept():
    found = []
    for sleeps in (False, True):
        named, optimizer = made()
        for seed in range(3):
            if sleeps:
                optimizer.sleeper.sleep()
                torch.cuda.empty_cache()
                filler = torch.full((64 * MIB,), 7.0, device="cuda")  # where the state was
                del filler
                optimizer.sleeper.wake()
            stepped(named, optimizer, seed)
        found.append([*optimizer.tensors().values(), *named.values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_arena_that_nobody_reads_is_pinned_no_more():
    for _ in range(3):  # a second registration of the same addresses would fail
        _, optimizer = made()
        optimizer.sleeper.sleep()
        del optimizer
        gc.collect()
