"""Tokens a second, MFU and peak memory of training, on one process or on many.

    python benchmarks/train.py [--settings none:9216 full:20480 ...]
    torchrun --nproc-per-node 4 benchmarks/train.py --tp 2 --sp --settings none:10240
    torchrun --nproc-per-node 4 benchmarks/train.py --cp 2 --load 8x4x1024+31744 ...

A setting is recompute:tokens-per-row-and-GPU; recompute is none, selective or full (every layer).
Every setting trains the same sequences twice; the second time counts. The load is W1 unless given
as prompts x samples x prompt tokens + response tokens. What the axes leave is data parallel.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import w1

from tandem.algo import advantage
from tandem.config import AlgoConfig, BatchConfig, OptimConfig, ParallelConfig
from tandem.models.decoder import Decoder, Recompute
from tandem.models.mixture import Mixture
from tandem.models.part import parts_of
from tandem.models.shape import Shape, num_parameters
from tandem.packing import pack
from tandem.parallel import Mesh, make_mesh, sizes_of
from tandem.parallel.collectives import max_
from tandem.train import Learning, LocalTrainer, Schedule, layout_of

QWEN3_30B_A3B = replace(
    w1.QWEN3_4B,
    family="qwen3_moe",
    num_layers=48,
    width=2048,
    ffn=6144,
    num_key_heads=4,
    tied=False,
    mixture=Mixture(
        num_experts=128, per_token=8, ffn=768, layers=tuple(range(48)), normalises=True
    ),
)
SHAPES = {"qwen3-4b": w1.QWEN3_4B, "qwen3-30b-a3b": QWEN3_30B_A3B, "tiny": w1.TINY}
RECOMPUTE = {
    "none": None,
    "selective": Recompute(granularity="selective"),
    "full": Recompute(),
}


def main() -> None:
    options = parsed()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if len(options.settings) > 1 and world == 1:
        # a process for each: what one leaves behind must not be the next one's peak
        at = sys.argv.index("--settings")
        flags = sys.argv[1:at] + sys.argv[at + 1 + len(options.settings) :]
        for setting in options.settings:
            line = [sys.executable, __file__, *flags, "--settings", setting]
            subprocess.run(line, check=True)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    mesh = mesh_of(options, world, device)
    shape, load = shape_of(options), load_of(options)
    row = measured(options, shape, load, mesh, device)
    if mesh.rank == 0:
        facts = {"shape": options.shape, "layers": shape.num_layers, "tokens": load.num_tokens}
        floor_s = model_flops(shape, load) / w1.MATMUL_FLOPS / world
        w1.report("train", [row], options.out, floor_s=floor_s, **facts)
    if world > 1:
        dist.destroy_process_group()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=w1.RESULTS)
    parser.add_argument("--tiny", action="store_true", help="walk through on a CPU")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--load", help="PROMPTSxSAMPLESxPROMPT+RESPONSE")
    parser.add_argument("--settings", nargs="+", default=["none:10240"])
    for axis in ("tp", "cp", "pp", "ep", "etp", "vpp"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    parser.add_argument("--sp", action="store_true", help="sequence parallel")
    parser.add_argument("--offload", action="store_true", help="optimizer state in host memory")
    options = parser.parse_args()
    if options.tiny:
        options.shape, options.load = "tiny", options.load or "4x2x16+32"
    return options


def mesh_of(options: argparse.Namespace, world: int, device: torch.device) -> Mesh:
    """This process's mesh, of the processes that torchrun started."""
    sizes = sizes_of(
        world,
        tensor=options.tp,
        context=options.cp,
        pipeline=options.pp,
        expert=options.ep,
        expert_tensor=options.etp,
    )
    if world == 1:
        return Mesh()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return make_mesh(dist.get_rank(), sizes, dist.new_group)


def shape_of(options: argparse.Namespace) -> Shape:
    """The model's shape; the tiny one has experts where these are to be divided."""
    shape = SHAPES[options.shape]
    if options.tiny and options.ep > 1:
        mixture = Mixture(num_experts=4, per_token=2, ffn=32, layers=(0, 1), normalises=True)
        shape = replace(shape, family="qwen3_moe", mixture=mixture)
    if options.layers is None:
        return shape
    mixture = shape.mixture
    if mixture is not None:
        kept = tuple(layer for layer in mixture.layers if layer < options.layers)
        mixture = replace(mixture, layers=kept)
    return replace(shape, num_layers=options.layers, mixture=mixture)


def load_of(options: argparse.Namespace) -> w1.Load:
    if options.load is None:
        return w1.Load()
    return w1.Load(*map(int, options.load.replace("+", "x").split("x")))


def model_flops(shape: Shape, load: w1.Load) -> float:
    """As `w1.model_flops`, of the experts that a token takes."""
    unused = 0
    if shape.mixture is not None:
        spare = shape.mixture.num_experts - shape.mixture.per_token
        unused = len(shape.mixture.layers) * spare * 3 * shape.width * shape.mixture.ffn
    return w1.model_flops(shape, load) - 6 * unused * load.num_tokens


def make_trainer(
    options: argparse.Namespace, shape: Shape, load: w1.Load, mesh: Mesh, device: torch.device
) -> LocalTrainer:
    """A trainer on this process's parts of a random model."""
    recompute, row_tokens = options.settings[0].split(":")
    parallel = ParallelConfig(
        tensor_model_parallel_size=options.tp,
        pipeline_model_parallel_size=options.pp,
        sequence_parallel=options.sp,
        num_virtual_stages_per_pipeline_rank=options.vpp if options.vpp > 1 else None,
    )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    parts = [Decoder(shape, dtype, device, part) for part in parts_of(shape, mesh, parallel)]
    for part in parts:
        part.init_random(0)
    batch = BatchConfig(
        global_batch_size=load.num_sequences,
        use_dynamic_batch_size=True,
        max_tokens_per_gpu=int(row_tokens),
        balance_data=True,
    )
    learning = Learning(
        algo=AlgoConfig(),
        batch=batch,
        optim=OptimConfig(lr=1e-6, optimizer_cpu_offload=options.offload),
        schedule=Schedule(style="constant", peak=1e-6, floor=0, first=0, warmup=0, decay=1),
        step_size=load.num_sequences,
        layout=layout_of(parts[0], batch),
        recompute=RECOMPUTE[recompute],
    )
    return LocalTrainer(parts, learning)


def measured(
    options: argparse.Namespace, shape: Shape, load: w1.Load, mesh: Mesh, device: torch.device
) -> dict:
    """One row of the table; a setting that does not fit says so."""
    world = mesh.sizes.world
    recompute, row_tokens = options.settings[0].split(":")
    axes = {axis: getattr(options, axis) for axis in ("tp", "cp", "pp", "ep", "etp", "vpp")}
    head = {"gpus": world, "dp": mesh.sizes.data, **axes, "sp": int(options.sp)}
    head |= {"recompute": recompute, "row_tokens": int(row_tokens)}
    groups = w1.random_groups(shape, load)
    try:
        trainer = make_trainer(options, shape, load, mesh, device)
        learning = trainer._learning
        for _ in range(2):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begin_s = time.perf_counter()
            annotated = advantage(trainer.annotate(groups), learning.algo)
            packed = pack(annotated, trainer.layout, learning.batch, learning.algo)
            packed_s = time.perf_counter() - begin_s
            stats = trainer.step_on(packed)
            w1.sync()
            total_s = time.perf_counter() - begin_s
    except torch.OutOfMemoryError as error:
        if world > 1:
            raise  # the others wait for this one
        return {**head, "total_s": str(error).partition(". ")[0]}
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    numbers = torch.tensor([total_s, packed_s, peak], dtype=torch.float64, device=device)
    total_s, packed_s, peak = max_(numbers, mesh.world).tolist()
    step_s = total_s - packed_s
    flops = model_flops(shape, load) / world
    return {
        **head,
        "total_s": total_s,
        "pack_s": packed_s,
        "forward_backward_s": stats.seconds["forward_backward"],
        "optimizer_s": stats.seconds["optimizer"],
        "tokens_per_s_and_gpu": load.num_tokens / step_s / world,
        "mfu_of_989": flops / step_s / w1.DATASHEET_FLOPS,
        "of_matmul_ceiling": flops / step_s / w1.MATMUL_FLOPS,
        "peak_GiB": peak,
        "parameters": num_parameters(shape),
    }


if __name__ == "__main__":
    main()
