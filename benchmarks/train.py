"""Seconds, MFU and peak memory of training on W1, by recompute setting and row length.

    python benchmarks/train.py [--out FOLDER] [--tiny] [--settings none:9216 selective:... ]

A setting is recompute:tokens-per-row. `none` keeps every activation, `full` recomputes every layer,
`block12` the first twelve. `selective`, in Megatron's sense, recomputes the scores of attention,
which no kernel here keeps: it is `none`. Every setting trains the same 32 x 8 sequences, after some
of them to warm up.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
import w1

from tandem.algo import advantage
from tandem.config import AlgoConfig, BatchConfig, OptimConfig
from tandem.models.decoder import Decoder, Recompute
from tandem.packing import pack
from tandem.parallel import Layout
from tandem.train import Learning, LocalTrainer, Schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    parser.add_argument("--settings", nargs="+", default=["none:10240", "full:20480"])
    options = parser.parse_args()
    shape, load = w1.QWEN3_4B, w1.Load()
    if options.tiny:
        shape, load = w1.TINY, w1.Load(4, 2, 16, 32)
    device = torch.device("cpu" if options.tiny else "cuda")
    if len(options.settings) > 1:
        # a process for each: what one leaves behind must not be the next one's peak
        for setting in options.settings:
            flags = ["--out", str(options.out), "--settings", setting]
            flags += ["--tiny"] * options.tiny
            subprocess.run([sys.executable, __file__, *flags], check=True)
        return
    groups = w1.random_groups(shape, load)
    decoder = Decoder(shape, torch.float32 if options.tiny else torch.bfloat16, device)
    decoder.init_random(0)
    rows = [measured(decoder, groups, load, *options.settings[0].split(":"))]
    floor_s = w1.training_floor_s(shape, load)
    w1.report("train", rows, options.out, floor_s=floor_s, tokens=load.num_tokens)


def recompute_of(name: str) -> Recompute | None:
    if name.startswith("block"):
        return Recompute(method="block", num_layers=int(name.removeprefix("block")))
    return {"none": None, "selective": None, "full": Recompute()}[name]


def measured(decoder: Decoder, groups, load: w1.Load, recompute: str, row_tokens: str) -> dict:
    """One row of the table; a setting that does not fit says so."""
    algo = AlgoConfig()
    batch = BatchConfig(
        global_batch_size=load.num_sequences,
        use_dynamic_batch_size=True,
        max_tokens_per_gpu=int(row_tokens),
    )
    learning = Learning(
        algo=algo,
        batch=batch,
        optim=OptimConfig(lr=1e-6),
        schedule=Schedule(style="constant", peak=1e-6, floor=0, first=0, warmup=0, decay=1),
        step_size=load.num_sequences,
        layout=Layout(row_multiple=128 if decoder.head_weight.is_cuda else 1),
        recompute=recompute_of(recompute),
    )
    head = {"recompute": recompute, "row_tokens": int(row_tokens)}
    trainer = LocalTrainer(decoder, learning)
    try:
        for some in (groups[: max(1, len(groups) // 8)], groups):
            if decoder.head_weight.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            begin_s = time.perf_counter()
            annotated = advantage(trainer.annotate(some), algo)
            packed = pack(annotated, learning.layout, batch, algo)
            packed_s = time.perf_counter() - begin_s
            stats = trainer.step_on(packed)
            w1.sync()
            total_s = time.perf_counter() - begin_s
    except torch.OutOfMemoryError as error:
        return {**head, "total_s": str(error).partition(". ")[0]}
    step_s = total_s - packed_s
    flops = w1.model_flops(decoder.shape, load)
    peak = torch.cuda.max_memory_allocated() / 2**30 if decoder.head_weight.is_cuda else 0.0
    return {
        **head,
        "total_s": total_s,
        "pack_s": packed_s,
        "forward_backward_s": stats.seconds["forward_backward"],
        "optimizer_s": stats.seconds["optimizer"],
        "tokens_per_s": load.num_tokens / step_s,
        "mfu_of_989": flops / step_s / w1.DATASHEET_FLOPS,
        "of_matmul_ceiling": flops / step_s / w1.MATMUL_FLOPS,
        "peak_GiB": peak,
    }


if __name__ == "__main__":
    main()
