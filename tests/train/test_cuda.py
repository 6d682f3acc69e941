import pytest
import torch

from tandem.algo import advantage
from tandem.config import AlgoConfig, BatchConfig, OptimConfig
from tandem.packing import pack
from tandem.parallel import Layout
from tandem.train import AdamW, Learning, LocalTrainer, schedule_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_steps_on_the_gpu_are_those_on_the_cpu():
    shapes = {"matrix": (300, 70), "norm": (70,)}
    cfg = OptimConfig(weight_decay=0.1, clip_grad=1.0)
    found = {}
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        named = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(device))
            for name, shape in shapes.items()
        }
        adam = AdamW(named.items(), cfg)
        for step in range(5):
            for parameter in named.values():
                grad = torch.randn(parameter.shape, generator=generator)
                if step == 2:
                    grad.view(-1)[0] = float("nan")  # this step is not taken
                parameter.grad = grad.to(device)
            adam.step(0.01)
        found[device] = {name: parameter.detach().cpu() for name, parameter in named.items()}
        assert adam.tensors()["optimizer.step"].item() == 4
    for name in shapes:
        assert torch.allclose(found["cuda"][name], found["cpu"][name], rtol=1e-5, atol=1e-6)


def rows_of_two_rollouts(decoder, groups, device, dtype):
    batch = BatchConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=80, global_batch_size=4)
    algo = AlgoConfig(use_rollout_entropy=True)
    optim = OptimConfig(lr=1e-3, lr_decay_style="constant")
    learning = Learning(
        algo=algo,
        batch=batch,
        optim=optim,
        schedule=schedule_of(optim, step_size=4, num_rollouts=16),
        step_size=4,
        layout=Layout(row_multiple=128 if device == "cuda" else 1),
    )
    trainer = LocalTrainer(decoder.to(device=device, dtype=dtype), learning)
    rows = []
    for _ in range(2):
        annotated = advantage(trainer.annotate(groups), algo)
        rows += trainer.step_on(pack(annotated, trainer.layout, batch, algo)).rows
    return rows


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_training_on_the_gpu_reports_what_the_cpu_reports(make_decoder, make_groups, dtype, bound):
    wanted = rows_of_two_rollouts(make_decoder(), make_groups(), "cpu", torch.float32)
    got = rows_of_two_rollouts(make_decoder(), make_groups(), "cuda", dtype)
    for row, other in zip(got, wanted, strict=True):
        for name in ("loss", "entropy_loss", "grad_norm", "train_rollout_logprob_abs_diff"):
            assert row[name] == pytest.approx(other[name], rel=bound, abs=bound), name
    assert got[0]["ppo_kl_abs"] < bound
