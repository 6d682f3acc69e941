"""How far the engine's log-probs are from the trainer's, on one GPU, and what exactness costs.

    python benchmarks/agreement.py [--out FOLDER] [--tiny] [--parts]

With `--parts`: the same tokens through every kind of packed and of decode attention, and the layer
and value where their bits first differ (`agreement_parts.py`). Otherwise, first: for each matrix of
a layer, the numbers of rows at which a product's bits differ from those of the same rows in a large
product, with cuBLAS as torch takes it and as engine and trainer do, its split of the inner axis
off. Then W1's prompts with 128 tokens each are sampled by the default and by the deterministic
engine, and the trainer's forward looks at the same tokens.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import w1
from agreement_parts import parts
from engine import load_of

from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.attention import packed_attention
from tandem.kernels.device import repeat_gradients
from tandem.kernels.head import head_logits, token_logprobs
from tandem.kernels.linear import sum_products_in_one_order
from tandem.models.decoder import Decoder

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 1280)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    parser.add_argument("--parts", action="store_true", help="layer by layer")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    decoder = Decoder(
        w1.TINY if options.tiny else w1.QWEN3_4B,
        torch.float32 if options.tiny else torch.bfloat16,
        device,
    )
    decoder.init_random(0)
    scale = 16 if options.tiny else 1
    if options.parts:
        sum_products_in_one_order()
        found = [line for rows in (256 // scale, 48) for line in parts(decoder, rows, scale)]
        w1.report("agreement_parts", found, options.out)
        return
    rows = [{"products": "as they come", **unequal_rows(decoder)}]
    sum_products_in_one_order()
    rows.append({"products": "inner axis not split", **unequal_rows(decoder)})
    table = [measured(decoder, device, scale, is_exact=False)]
    repeat_gradients()
    table.append(measured(decoder, device, scale, is_exact=True))
    w1.report("agreement_products", rows, options.out)
    w1.report("agreement", table, options.out)


@torch.no_grad()
def unequal_rows(decoder: Decoder) -> dict[str, str]:
    """By matrix, the numbers of rows at which bits differ from those of 2,048 rows."""
    layer = decoder.layers[0]
    found = {}
    for name in ("qkv", "out", "gate_up", "down", "head"):
        weight = decoder.head_weight if name == "head" else getattr(layer, name).weight
        x = torch.randn(2048, weight.shape[1], device=weight.device, dtype=weight.dtype)
        product = head_logits if name == "head" else torch.nn.functional.linear
        whole = product(x, weight)
        unequal = [m for m in ROWS if not torch.equal(product(x[:m], weight), whole[:m])]
        found[name] = " ".join(map(str, unequal)) or "none"
    return found


def measured(decoder: Decoder, device: torch.device, scale: int, *, is_exact: bool) -> dict:
    """One row of the table: seconds to sample, and the differences."""
    cfg = EngineConfig(
        engine_max_running=256, engine_cache_tokens=150_000 // scale, deterministic_mode=is_exact
    )
    engine = TorchEngine(decoder, None, cfg, device, eos_token_ids=())

    def load(seed: int, count: int):
        requests = load_of("w1", decoder.shape.vocab, scale, seed)
        return [
            replace(one, sampling=replace(one.sampling, max_new_tokens=count)) for one in requests
        ]

    engine.generate(load(0, 4))
    requests = load(1, 128 // scale)
    w1.sync()
    begin_s = time.perf_counter()
    done = engine.generate(requests)
    w1.sync()
    seconds = time.perf_counter() - begin_s
    trainers = trainer_logprobs(decoder, requests, done)
    gap = np.abs(trainers - np.concatenate([one.logprobs_C for one in done]))
    engine.close()
    return {
        "deterministic": is_exact,
        "sampling_s": seconds,
        "mean_difference": f"{gap.mean():.2e}",
        "largest_difference": f"{gap.max():.2e}",
        "equal_bits": float((gap == 0).mean()),
    }


@torch.no_grad()
def trainer_logprobs(decoder: Decoder, requests, done) -> np.ndarray:
    """The trainer's log-probs of every sampled token, by packed rows of eight sequences."""
    device, parts = decoder.head_weight.device, []
    for start in range(0, len(requests), 8):
        some = list(zip(requests[start : start + 8], done[start : start + 8], strict=True))
        sequences = [np.concatenate([request.tokens_T, one.tokens_C]) for request, one in some]
        lengths = [len(tokens_T) for tokens_T in sequences]
        tokens_T = torch.from_numpy(np.concatenate(sequences).astype(np.int64)).to(device)
        positions_T = torch.cat([torch.arange(length) for length in lengths]).to(device)
        bounds_S = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=device)

        def attend(layer, q, k, v, bounds_S=bounds_S, longest=max(lengths)):
            return packed_attention(q, k, v, bounds_S, longest)

        hidden_TD = decoder(tokens_T, positions_T, attend)
        targets_T = torch.roll(tokens_T, -1)
        values, _ = token_logprobs(hidden_TD, decoder.head_weight, targets_T)
        scores_T, end = values.cpu().numpy(), 0
        for (request, _), length in zip(some, lengths, strict=True):
            parts.append(scores_T[end + len(request.tokens_T) - 1 : end + length - 1])
            end += length
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
