"""Runs a function of a test file on several ranks of gloo: python ranks.py FILE FUNCTION WORLD OUT

Torch is imported once, then every rank is forked. `FUNCTION(rank, world)` finds torch.distributed
set up; what it returns is saved as OUT/RANK.pt. The first rank that fails ends the others.
"""

import importlib.util
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)


def work(function, rank: int, world: int, out: Path) -> None:
    """What each rank does."""
    store = f"file://{out}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=TIMEOUT)
    torch.save(function(rank, world), out / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    """The number of ranks that failed by themselves."""
    file, name, world, out = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    ranks = set()
    for rank in range(world):
        child = os.fork()
        if not child:
            try:
                work(getattr(module, name), rank, world, out)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ranks.add(child)
    failed = 0
    while ranks:
        child, status = os.wait()
        ranks.discard(child)
        if status and not failed:
            failed = 1
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return failed


if __name__ == "__main__":
    sys.exit(main())
