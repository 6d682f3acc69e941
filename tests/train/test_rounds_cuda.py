"""Sampling and training in turns take the same memory in every round."""

import numpy as np
import pytest
import torch

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.runtime.turns import Turns, least_memory_of, memory_of
from tandem.sync import SharedSync
from tandem.types import Request, SampleKey, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROUNDS = 20


def requests_of(number):
    """Eight prompts of different lengths, other ones each round."""
    rng = np.random.default_rng(number)
    return [
        Request(
            id=f"{number}-{place}",
            tokens_T=rng.integers(1, 60, 3 + 2 * place).astype(np.int32),
            sampling=Sampling(max_new_tokens=20, ignore_eos=True),
            key=SampleKey(seed=number, prompt=place, sample=0),
            group=str(place),
        )
        for place in range(8)
    ]


@pytest.mark.parametrize("moves_state", [False, True])
def test_memory_does_not_grow_over_rounds(
    make_decoder, make_trainer, make_groups, learn, moves_state
):
    decoder = make_decoder(head_size=64).to(device="cuda", dtype=torch.bfloat16)
    trainer = make_trainer(decoder=decoder)
    cfg = EngineConfig(engine_max_running=16, engine_cache_tokens=4096)
    engine = TorchEngine(decoder, None, cfg, "cuda", eos_token_ids=())
    sync, used, device = SharedSync([engine], dtype="bfloat16"), [], torch.device("cuda", 0)
    devices = Turns(
        trainer,
        engine,
        print,
        measure=lambda: [memory_of(device)],
        least=lambda: [least_memory_of(device)],
        moves_state=moves_state,
    ).devices()
    for number in range(ROUNDS):
        with devices.sampling():
            engine.generate(requests_of(number))
        with devices.learning():
            learn(trainer, make_groups())
        sync.publish(trainer.weights(number + 1))
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total - free))
    engine.close()
    # by the third round kernels are compiled and graphs recorded
    assert all(now <= then for now, then in zip(used[-1], used[3], strict=True)), used
