"""Output tokens a second of the embedded engine and of transformers' generate, on one CPU.

    python benchmarks/engine_cpu.py

Both sample the same load with the same weights in one run, one after the other: 64 prompts x 8
samples, prompt and response lengths drawn uniformly, temperature 1. The engine also returns a
log-prob for every token, generate does not. Responses end at their drawn lengths: by
`max_new_tokens` here, by a stopping criterion for each row there (a batch of generate runs until
its longest row has ended; its rows are sorted by prompt length, since response lengths are not
known beforehand). Only tokens up to each row's end count. Seconds of the processor are shown beside
those of the clock: they tell more where other work shares the machine. One table, and one JSON line
that `--keep` adds to benchmarks/results/engine_cpu.json.
"""

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers

from tandem.checkpoint.hugging_face import load_hugging_face
from tandem.config import EngineConfig
from tandem.engine.torch.engine import TorchEngine
from tandem.models.build import build_decoder
from tandem.types import Request, SampleKey, Sampling

RESULTS = Path(__file__).parent / "results"
VOCAB = 4096
KINDS = ("engine", "generate")


@dataclass(frozen=True, slots=True)
class Timed:
    """One way through the load."""

    kind: str
    name: str
    clock_s: float
    processor_s: float


def timed(kind: str, name: str, work: Callable[[], None]) -> Timed:
    """What `work` takes."""
    clock_s, processor_s = time.perf_counter(), time.process_time()
    work()
    return Timed(kind, name, time.perf_counter() - clock_s, time.process_time() - processor_s)


def make_load(num_prompts: int, num_samples: int, prompt: tuple, response: tuple):
    """Prompts, and the response length of every sample `[P, G]`."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(prompt[0], prompt[1] + 1, size=num_prompts)
    prompts = [rng.integers(0, VOCAB, size=length).astype(np.int32) for length in lengths]
    return prompts, rng.integers(response[0], response[1] + 1, size=(num_prompts, num_samples))


def make_model(folder: str) -> transformers.PreTrainedModel:
    """Qwen3 with 4 layers of 256 and random weights, saved into `folder`."""
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


class EndsAt(transformers.StoppingCriteria):
    """Row r has ended when it has `limits_R[r]` tokens."""

    def __init__(self, limits_R: torch.Tensor) -> None:
        self.limits_R = limits_R

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        return self.limits_R <= input_ids.shape[1]


def run_generate(model, prompts, lengths_PG, batch_size: int) -> None:
    """The whole load by generate, in batches of `batch_size` rows."""
    rows = [(p, g) for p in range(len(prompts)) for g in range(lengths_PG.shape[1])]
    rows.sort(key=lambda row: len(prompts[row[0]]))
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        width = max(len(prompts[p]) for p, _ in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (p, _) in enumerate(batch):
            ids[row, width - len(prompts[p]) :] = torch.as_tensor(prompts[p])
            mask[row, width - len(prompts[p]) :] = 1
        wanted_R = torch.tensor([int(lengths_PG[p, g]) for p, g in batch])
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=int(wanted_R.max()),
                stopping_criteria=transformers.StoppingCriteriaList([EndsAt(width + wanted_R)]),
            )


def make_engine(folder: str, block_size: int, max_running: int) -> TorchEngine:
    decoder = build_decoder(folder, torch.float32, "cpu", init="checkpoint", load=load_hugging_face)
    cfg = EngineConfig(engine_block_size=block_size, engine_max_running=max_running)
    return TorchEngine(decoder, None, cfg, "cpu", ())


def run_engine(engine: TorchEngine, prompts, lengths_PG) -> None:
    """The whole load by the engine; its prefix cache begins empty."""
    engine.forget()
    requests = [
        Request(
            id=f"{p}-{g}",
            tokens_T=prompts[p],
            sampling=Sampling(max_new_tokens=int(lengths_PG[p, g])),
            key=SampleKey(seed=0, prompt=p, sample=g),
            group=f"{p}",
        )
        for p in range(len(prompts))
        for g in range(lengths_PG.shape[1])
    ]
    completions = engine.generate(requests)
    assert sum(len(done.tokens_C) for done in completions) == lengths_PG.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-length", type=int, nargs=2, default=(32, 256))
    parser.add_argument("--response-length", type=int, nargs=2, default=(16, 256))
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=(64, 128, 256))
    parser.add_argument("--running", type=int, nargs="*", default=(256, 512))
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--keep", action="store_true", help="add the line to the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    prompts, lengths_PG = make_load(
        args.prompts, args.samples, args.prompt_length, args.response_length
    )
    total = int(lengths_PG.sum())
    rows: list[Timed] = []

    def show(row: Timed) -> None:
        rows.append(row)
        print(
            f"{row.kind:<9} {row.name:<22} {row.clock_s:8.2f} s {total / row.clock_s:8.0f} tokens/s"
            f" {row.processor_s:8.2f} processor s",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        model = make_model(folder)
        small = prompts[:4], np.full((4, 2), 8)
        # engine, generate, engine: a machine that others use changes speed in between
        for turn in (1, 2):
            for running in args.running:
                engine = make_engine(folder, args.block_size, running)
                run_engine(engine, *small)
                work = partial(run_engine, engine, prompts, lengths_PG)
                show(timed("engine", f"{running} running, turn {turn}", work))
            if turn == 1:
                run_generate(model, *small, 8)
                for size in args.batch_sizes:
                    work = partial(run_generate, model, prompts, lengths_PG, size)
                    show(timed("generate", f"batches of {size}", work))
    line = summary(args, rows, total)
    print(json.dumps(line))
    if args.keep:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "engine_cpu.json").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def summary(args: argparse.Namespace, rows: list[Timed], total: int) -> dict:
    """The JSON line: rates, the ratios of the best of each kind, commit and hardware."""
    clock_s, processor_s = (
        {kind: min(getattr(row, what) for row in rows if row.kind == kind) for kind in KINDS}
        for what in ("clock_s", "processor_s")
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "benchmark": "engine_cpu",
        "ratio": round(clock_s["generate"] / clock_s["engine"], 2),
        "ratio_of_processor_seconds": round(processor_s["generate"] / processor_s["engine"], 2),
        "tokens_per_s": {f"{row.kind}, {row.name}": round(total / row.clock_s) for row in rows},
        "load": f"{args.prompts} x {args.samples}, prompts {list(args.prompt_length)}, "
        f"responses {list(args.response_length)}, {total} output tokens",
        "model": "Qwen3, 4 layers of 256, 4/2 heads of 64, vocabulary 4096, float32",
        "commit": commit,
        "hardware": f"{platform.machine()} CPU, {args.threads} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
