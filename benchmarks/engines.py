"""The embedded engine and a stock SGLang server side by side, on one GPU, in one go.

    python benchmarks/engines.py [--out FOLDER] [--loads w1 w1-64 w1-512] [--runs 3]
                                 [-- --sglang-grammar-backend none ...]

Both sample the same requests through the contract that rollouts use, log-probs included, after one
warm-up each; the table has all runs. For SGLang it also measures the start, weight updates by CUDA
IPC (all weights, checked by a canary), an update under running requests, giving all memory back and
taking it again, and memory. Then the agreement: log-probs of what SGLang sampled, by the trainer's
forward and by the embedded engine. What follows `--` goes to the server. `--tiny` walks through it
on a CPU, with `--python` an interpreter that has SGLang.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import engine as loads
import numpy as np
import step
import torch
import w1

from tandem.checkpoint.names import to_hugging_face
from tandem.config import EngineConfig
from tandem.config.load import read_config
from tandem.contracts import Engine
from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.launch import Place, Spot, launch
from tandem.engine.sglang.weights import SglangSync
from tandem.engine.torch.engine import TorchEngine
from tandem.kernels.attention import packed_attention
from tandem.kernels.head import token_logprobs
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape
from tandem.sync.check import failures_of
from tandem.types import Canary, Completion, Request, Weights

CANARY_T = np.arange(1, 17, dtype=np.int32) * 17
NUM_AGREEING = 8
"""Sequences whose log-probs are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    parser.add_argument("--loads", nargs="+", default=["w1"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="what runs SGLang")
    parser.add_argument("--cache-tokens", type=int, default=400_000)
    parser.add_argument("--kill", action="store_true", help="kill the server while it samples")
    parser.add_argument("flags", nargs="*", help="of the server, after --")
    options = parser.parse_args()
    shape, scale = (w1.TINY, 16) if options.tiny else (w1.QWEN3_4B, 1)
    device = torch.device("cpu" if options.tiny else "cuda")
    decoder = Decoder(shape, torch.float32 if options.tiny else torch.bfloat16, device)
    decoder.init_random(0)
    embedded, rows = embedded_engine(decoder, options.cache_tokens // scale), []
    for name in options.loads:
        rows += sampled("embedded", embedded, shape, name, scale, options.runs)[0]
    embedded.sleep()
    facts: dict = {"trainer_GiB": used_GiB(device)}
    with ExitStack() as stack:
        begin_s = time.perf_counter()
        model = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        step.make_model(model, shape)
        logs = options.out / "engines"
        servers = launched(model, device, stack, logs, options.python, options.flags)
        servers.fleet.until_up()
        facts["start_s"] = time.perf_counter() - begin_s
        facts["servers_GiB"] = used_GiB(device) - facts["trainer_GiB"]
        sync = SglangSync(servers.fleet, failures_of, dtype=dtype_of(decoder))
        facts["update_s"] = [published(sync, decoder, version) for version in range(1, 5)]
        for name in options.loads:
            more, pairs = sampled("sglang", servers, shape, name, scale, options.runs)
            rows += more
        facts |= under_way(servers, sync, decoder, shape, scale)
        facts |= given_back(servers, sync, decoder, device)
        if options.kill:
            facts |= killed(servers, decoder, shape, scale)
        servers.sleep()
        embedded.wake()
        facts |= agreement(decoder, embedded, pairs[:NUM_AGREEING])
    w1.report("engines", rows, options.out, flags=options.flags, **facts)


def embedded_engine(decoder: Decoder, cache_tokens: int) -> TorchEngine:
    cfg = EngineConfig(engine_max_running=512, engine_cache_tokens=cache_tokens)
    return TorchEngine(decoder, None, cfg, decoder.head_weight.device, eos_token_ids=())


def launched(
    model: Path, device: torch.device, stack: ExitStack, out: Path, python: str, flags: list[str]
) -> SglangEngine:
    """An SGLang engine that is starting, over a model folder without weights; logs go to `out`."""
    words = f"""
        --hf-checkpoint {model} --run-dir {out} --prompt-data none.jsonl
        --num-rollout 1 --rollout-batch-size 1 --rollout-max-response-len 1 --colocate
        --rollout-engine sglang --sglang-python {python} --sglang-skip-tokenizer-init
    """
    cfg, failures = read_config([*words.split(), *flags])
    assert not failures, failures
    is_cpu = device.type == "cpu"
    place = Place(
        dtype="float32" if is_cpu else "bfloat16",
        is_cpu=is_cpu,
        engines=((Spot(),),),
        shares_device=True,
        largest_batch=cfg.engine.sglang_server_concurrency,
    )
    engine = launch(cfg, place)
    stack.callback(engine.close)
    return engine


def sampled(who: str, engine: Engine, shape: Shape, name: str, scale: int, runs: int):
    """Rows of the table, and the requests of the last run with their completions."""
    rows, pairs = [], []
    for run in range(runs + 1):
        requests = loads.load_of(name, shape.vocab, scale, run)
        if scale > 1:
            requests = requests[:16]
        w1.sync()
        begin_s = time.perf_counter()
        done = asyncio.run(answered(engine, requests))
        took_s = time.perf_counter() - begin_s
        num_tokens = sum(len(one.tokens_C) for one in done)
        assert num_tokens == sum(request.sampling.max_new_tokens for request in requests)
        row = {"engine": who, "load": name, "run": run or "warm-up", "seconds": took_s}
        rows.append(row | {"output_tokens": num_tokens, "tokens_per_s": num_tokens / took_s})
        pairs = list(zip(requests, done, strict=True))
    return rows, pairs


async def answered(engine: Engine, requests: list[Request]) -> list[Completion]:
    return list(await asyncio.gather(*(engine.add(request) for request in requests)))


def weights_of(decoder: Decoder, version: int) -> Weights:
    named = ((name, one.detach()) for name, one in decoder.named_parameters())
    return Weights(
        version=version,
        named=to_hugging_face(decoder.shape, named),
        canary=Canary(tokens_T=CANARY_T, read=logprobs(decoder, CANARY_T).copy),
    )


def published(sync: SglangSync, decoder: Decoder, version: int) -> float:
    """Seconds until all servers have the weights; checked by the canary, which is not counted."""
    numbers = sync.publish(weights_of(decoder, version))
    return numbers["perf/update_weights_time"] - numbers["perf/update_weights_check_time"]


def under_way(servers: SglangEngine, sync, decoder: Decoder, shape: Shape, scale: int) -> dict:
    """An update while a load is sampled: its seconds, and that every request went on."""
    requests = loads.load_of("w1", shape.vocab, scale, 99)[:64]

    async def main() -> tuple[float, list[Completion]]:
        futures = [servers.add(request) for request in requests]
        await asyncio.sleep(2.0)
        seconds = await asyncio.to_thread(published, sync, decoder, 50)
        return seconds, list(await asyncio.gather(*futures))

    seconds, done = asyncio.run(main())
    crossed = [one for one in done if len(set(one.version_C.tolist())) == 2]
    return {"update_under_way_s": seconds, "crossed": f"{len(crossed)} of {len(done)}"}


def given_back(servers: SglangEngine, sync, decoder: Decoder, device: torch.device) -> dict:
    """Seconds and memory of release, and of everything until the server samples again."""
    before = used_GiB(device)
    begin_s = time.perf_counter()
    servers.sleep()
    released_s = time.perf_counter() - begin_s
    asleep = used_GiB(device)
    begin_s = time.perf_counter()
    published(sync, decoder, 60)
    back_s = time.perf_counter() - begin_s
    return {
        "release_s": released_s,
        "resume_update_check_s": back_s,
        "awake_GiB": before,
        "asleep_GiB": asleep,
    }


def killed(servers: SglangEngine, decoder: Decoder, shape: Shape, scale: int) -> dict:
    """Seconds from kill -9 until every request is answered by a new server, each once."""
    sync = SglangSync(
        servers.fleet,
        failures_of,
        dtype=dtype_of(decoder),
        again=lambda version: weights_of(decoder, version),
    )
    published(sync, decoder, 70)
    requests = loads.load_of("w1", shape.vocab, scale, 77)[:64]

    async def main() -> tuple[float, list[Completion]]:
        futures = [servers.add(request) for request in requests]
        await asyncio.sleep(2.0)
        os.kill(servers.fleet.members[0].process.pid, signal.SIGKILL)
        begin_s = time.perf_counter()
        done = list(await asyncio.gather(*futures))
        return time.perf_counter() - begin_s, done

    seconds, done = asyncio.run(main())
    for request, one in zip(requests, done, strict=True):
        assert len(one.tokens_C) == request.sampling.max_new_tokens
    return {"kill_to_last_answer_s": seconds}


def agreement(decoder: Decoder, embedded: TorchEngine, pairs) -> dict:
    """Mean absolute differences of the log-probs of what SGLang sampled."""
    trainer, engine = [], []
    for request, done in pairs:
        whole_T = np.concatenate([request.tokens_T, done.tokens_C])
        start = len(request.tokens_T)
        by_trainer_C = logprobs(decoder, whole_T)[start:]
        by_engine_C = embedded.canary(whole_T)[start:]
        trainer.append(np.abs(done.logprobs_C - by_trainer_C))
        engine.append(np.abs(by_engine_C - by_trainer_C))
    return {
        "sglang_against_trainer": float(np.concatenate(trainer).mean()),
        "embedded_against_trainer": float(np.concatenate(engine).mean()),
        "sglang_against_trainer_max": float(np.concatenate(trainer).max()),
    }


@torch.no_grad()
def logprobs(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """The trainer's log-prob of each token given those before it, 0 at the first."""
    device = decoder.head_weight.device
    tokens_T = torch.as_tensor(tokens, dtype=torch.int64, device=device)
    bounds_S = torch.tensor([0, len(tokens_T)], dtype=torch.int32, device=device)

    def attend(layer, q_TNH, k_TKH, v_TKH):
        return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, len(tokens_T))

    hidden_TD = decoder(tokens_T, torch.arange(len(tokens_T), device=device), attend)
    said = token_logprobs(hidden_TD[:-1], decoder.head_weight, tokens_T[1:])
    said_T = said[0] if isinstance(said, tuple) else said
    return np.concatenate([[0.0], said_T.float().cpu().numpy()]).astype(np.float32)


def dtype_of(decoder: Decoder) -> str:
    return str(decoder.head_weight.dtype).removeprefix("torch.")


def used_GiB(device: torch.device) -> float:
    """Memory of the device that anybody holds."""
    gc.collect()
    if device.type == "cpu":
        return 0.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**30


if __name__ == "__main__":
    main()
