"""How far the log-probs of the embedded engine, of stock SGLang and of the trainer lie apart.

    python benchmarks/agreement_sglang.py [--out FOLDER] [--layers N] [--modes default ...]
                                          [--python INTERPRETER] [-- --sglang-... ...]

One GPU, random weights of Qwen3-4B's shape, bf16. Both engines sample the same prompts, and all
three look at what each sampled: by default; with `--deterministic-mode`, where servers run SGLang's
deterministic inference; and so with SGLang's logits in float32 (`--sglang-enable-fp32-lm-head`),
which it otherwise rounds to bf16. The servers of all modes start at once, each with a small cache.
The facts under the table say which kernels a server took, and what share of tokens it chose again
when 8 of the requests were asked alone. What follows `--` goes to every server. `--tiny` walks
through it on a CPU, where there is no deterministic inference.
"""

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import engine as loads
import numpy as np
import step
import torch
import w1
from agreement import trainer_logprobs
from engines import answered, dtype_of, launched, published

from tandem.config import EngineConfig
from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.weights import SglangSync
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.device import repeat_gradients
from tandem.kernels.linear import sum_products_in_one_order
from tandem.models.decoder import Decoder
from tandem.sync.check import failures_of
from tandem.types import Completion, Request

MODES = {
    "default": (),
    "deterministic": ("--deterministic-mode",),
    "deterministic, fp32 head": ("--deterministic-mode", "--sglang-enable-fp32-lm-head"),
}
SMALL = "--no-offload-rollout --sglang-mem-fraction-static 0.7 --sglang-max-total-tokens 60000"
GRAPHS = "--sglang-grammar-backend none --sglang-cuda-graph-bs 8 32 64 128"
FACTS = ("attention_backend", "sampling_backend", "enable_deterministic_inference", "version")
NUM_REQUESTS, NUM_NEW, NUM_ALONE = 128, 128, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--python", default=sys.executable, help="what runs SGLang")
    parser.add_argument("flags", nargs="*", help="of the servers, after --")
    options = parser.parse_args()
    shape = w1.TINY if options.tiny else replace(w1.QWEN3_4B, num_layers=options.layers)
    device = torch.device("cpu" if options.tiny else "cuda")
    flags = [*SMALL.split(), *("" if options.tiny else GRAPHS).split(), *options.flags]
    rows, facts, begin_s = [], {}, time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        step.make_model(folder, shape)
        servers = {}
        for mode in options.modes:
            logs = options.out / "agreement_sglang" / mode.replace(", ", "_").replace(" ", "_")
            words = [*flags, *MODES[mode]]
            servers[mode] = launched(folder, device, stack, logs, options.python, words)
        decoder = Decoder(shape, torch.float32 if options.tiny else torch.bfloat16, device)
        decoder.init_random(0)
        sum_products_in_one_order()
        for mode in options.modes:
            try:
                facts[mode], found = measured(decoder, mode, servers[mode])
                rows += found
            except Exception as fault:  # the other modes are results all the same
                traceback.print_exc()
                rows.append({"mode": mode, "fault": str(fault)[-120:].replace("\n", " ")})
    facts["seconds_in_all"] = time.perf_counter() - begin_s
    w1.report("agreement_sglang", rows, options.out, layers=shape.num_layers, flags=flags, **facts)


def measured(decoder: Decoder, mode: str, servers: SglangEngine) -> tuple[dict, list[dict]]:
    """What a server says of itself, and the rows of a mode."""
    device, is_exact = decoder.head_weight.device, mode != "default"
    if is_exact:
        repeat_gradients()
    servers.fleet.until_up()
    published(SglangSync(servers.fleet, failures_of, dtype=dtype_of(decoder)), decoder, 1)
    cfg = EngineConfig(
        engine_max_running=NUM_REQUESTS, engine_cache_tokens=60_000, deterministic_mode=is_exact
    )
    requests = load(decoder, 1 if device.type == "cuda" else 16)
    with closing(TorchEngine(decoder, None, cfg, device, eos_token_ids=())) as embedded:
        by_embedded = embedded.generate(requests)
        by_servers = asyncio.run(answered(servers, requests))
        rows = []
        for sampler, done in (("embedded", by_embedded), ("SGLang", by_servers)):
            wholes = [
                np.concatenate([request.tokens_T, one.tokens_C])
                for request, one in zip(requests, done, strict=True)
            ]
            starts = [len(request.tokens_T) for request in requests]
            seen = {"trainer": trainer_logprobs(decoder, requests, done)}
            seen["embedded"] = tails(map(embedded.canary, wholes), starts)
            seen["SGLang"] = tails(scored(servers, wholes), starts)
            seen[sampler] = np.concatenate([one.logprobs_C for one in done])  # as it sampled
            rows += gaps({"mode": mode, "sampled by": sampler}, seen)
    alone = asyncio.run(answered(servers, requests[:NUM_ALONE]))
    return {"same_tokens_alone": same(by_servers[:NUM_ALONE], alone), **told(servers)}, rows


def gaps(head: dict, seen: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """A row for every two of those that looked at the same tokens."""
    for one, other in (("embedded", "trainer"), ("SGLang", "trainer"), ("SGLang", "embedded")):
        gap = np.abs(seen[one] - seen[other])
        yield {
            **head,
            "compared": f"{one} - {other}",
            "tokens": len(gap),
            "mean": f"{gap.mean():.2e}",
            "largest": f"{gap.max():.2e}",
            "equal_bits": float((gap == 0).mean()),
        }


def load(decoder: Decoder, scale: int) -> list[Request]:
    """Prompts of W1 with 8 samples each."""
    requests = loads.load_of("w1", decoder.shape.vocab, scale, 1)[: NUM_REQUESTS // scale]
    count = NUM_NEW // scale
    return [replace(one, sampling=replace(one.sampling, max_new_tokens=count)) for one in requests]


def scored(servers: SglangEngine, wholes: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """SGLang's log-probs of whole sequences, eight at a time: logits of a prompt take memory."""
    (member,), line = servers.fleet.members, servers.fleet.line
    for start in range(0, len(wholes), 8):
        asked = [line.start(member.server.canary(one)) for one in wholes[start : start + 8]]
        yield from (future.result() for future in asked)


def tails(logprobs: Iterator[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """The log-probs of what was sampled, all sequences joined."""
    return np.concatenate([one[start:] for one, start in zip(logprobs, starts, strict=True)])


def same(these: Sequence[Completion], those: Sequence[Completion]) -> float:
    """The share of equal tokens."""
    pairs = zip(these, those, strict=True)
    return float(np.mean([(one.tokens_C == other.tokens_C).mean() for one, other in pairs]))


def told(servers: SglangEngine) -> dict:
    (member,) = servers.fleet.members
    info = servers.fleet.line.run(member.server.get("/server_info"))
    return {name: info.get(name) for name in FACTS}


if __name__ == "__main__":
    main()
