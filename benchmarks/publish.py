"""What a weight update in one process is made of, on one GPU: digests and canaries, timed apart.

    python benchmarks/publish.py [--out FOLDER] [--tiny]

Qwen3-4B's shape. Nothing is copied, so all of an update is its proofs: the trainer digests its
tensors and asks itself for the canary's log-probs, the engine does the same through its own path.
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
from tandem.train.canary import canary
from tandem.train.model import Model
from tandem.types import Weights

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
    named = [(name, parameter.detach()) for name, parameter in decoder.named_parameters()]

    def publish() -> None:
        digests = digest_all((name, p.detach()) for name, p in decoder.named_parameters())
        proofs = {"digests": digests, "canary": canary(model, replayed)}
        sync.publish(Weights(version=next(versions), named=(), is_shared=True, **proofs))

    asked = canary(model, replayed).tokens_T
    parts: dict[str, Callable[[], object]] = {
        "digests of listed tensors": lambda: digest_all(named),
        "the engine's digests": lambda: engine.state_digest(as_stored=True),
        "the trainer's canary": lambda: canary(model, replayed),
        "the engine's canary": lambda: engine.canary(asked),
        "all of it": publish,
    }
    rows = [{"part": name, **timed(part)} for name, part in parts.items()]
    w1.report("publish", rows, options.out)
    engine.close()


def timed(part: Callable[[], object]) -> dict[str, float]:
    """Milliseconds, the median and the least of some runs after two to warm up."""
    taken = []
    for _ in range(RUNS + 2):
        w1.sync()
        begin_s = time.perf_counter()
        part()
        w1.sync()
        taken.append(1e3 * (time.perf_counter() - begin_s))
    return {"ms": statistics.median(taken[2:]), "least_ms": min(taken[2:])}


if __name__ == "__main__":
    main()
