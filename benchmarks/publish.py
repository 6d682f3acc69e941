"""What a weight update in one process is made of, on one GPU: digests and canaries, timed apart.

    python benchmarks/publish.py [--out FOLDER] [--tiny]

Qwen3-4B's shape. Nothing is copied, so all of an update is its proofs: the trainer digests its
tensors and asks itself for the canary's log-probs, the engine shows that it reads those tensors and
gives the canary's log-probs through its own path. `host_ms` is until the call came back, `ms` until
the device was idle too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import w1

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.digest import digest_all
from tandem.kernels.linear import sum_products_in_one_order
from tandem.kernels.replay import Replayed
from tandem.models.decoder import Decoder
from tandem.sync import SharedSync
from tandem.sync.check import storage_failures
from tandem.train.canary import canary
from tandem.train.model import Model
from tandem.train.publish import weights_of

RUNS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    dtype = torch.float32 if options.tiny else torch.bfloat16
    decoder = Decoder(w1.TINY if options.tiny else w1.QWEN3_4B, dtype, device)
    decoder.init_random(0)
    sum_products_in_one_order()
    cfg = EngineConfig(engine_max_running=8, engine_cache_tokens=4096)
    engine = TorchEngine(decoder, None, cfg, device, eos_token_ids=())
    model, replayed = Model([decoder]), Replayed()
    sync = SharedSync([engine], dtype=str(dtype).removeprefix("torch."))
    versions = iter(range(1000))
    stored, asked = dict(decoder.named_parameters()), canary(model, replayed).tokens_T
    parts: dict[str, Callable[[], object]] = {
        "the trainer's digests": lambda: digest_all(stored.items()),
        "the trainer's canary": lambda: canary(model, replayed).logprobs_T,
        "both, launched": lambda: weights_of(model, 0, replayed),
        "the engine's storage": lambda: storage_failures(engine, "engine", stored),
        "the engine's canary": lambda: engine.canary(asked),
        "all of it": lambda: sync.publish(weights_of(model, next(versions), replayed)),
    }
    rows = [{"part": name, **timed(part)} for name, part in parts.items()]
    w1.report("publish", rows, options.out)
    engine.close()


def timed(part: Callable[[], object]) -> dict[str, float]:
    """Milliseconds, the median and the least of some runs after two to warm up."""
    taken, launched = [], []
    for _ in range(RUNS + 2):
        w1.sync()
        begin_s = time.perf_counter()
        part()
        launched.append(1e3 * (time.perf_counter() - begin_s))
        w1.sync()
        taken.append(1e3 * (time.perf_counter() - begin_s))
    return {
        "ms": statistics.median(taken[2:]),
        "least_ms": min(taken[2:]),
        "host_ms": statistics.median(launched[2:]),
    }


if __name__ == "__main__":
    main()
