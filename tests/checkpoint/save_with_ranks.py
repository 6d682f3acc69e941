"""Two ranks save a sharded tensor, load it back, and share a fault of the first.

python save_with_ranks.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tandem.checkpoint import torch_dist
from tandem.errors import CheckpointError

WHOLE = torch.arange(40.0).reshape(10, 4)


def work(folder: Path, rank: int) -> None:
    """What each rank does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    sharded = distribute_tensor(WHOLE, mesh, [Shard(0)])
    state = {"model.sharded": sharded, "model.same": torch.ones(3)}
    torch_dist.save(folder / "root", 7, state, {"seed": 5})

    empty = {
        "model.sharded": distribute_tensor(torch.zeros(10, 4), mesh, [Shard(0)]),
        "model.same": torch.zeros(3),
    }
    assert torch_dist.load(folder / "root", empty) == {"seed": 5}
    assert empty["model.sharded"].full_tensor().equal(WHOLE)

    own = dist.new_group()  # what a save in the background would use
    torch_dist.save(folder / "root", 8, state, process_group=own)

    (folder / "file").touch()
    try:
        torch_dist.save(folder / "file" / "below", 9, state)
    except OSError:
        (folder / f"rank{rank}.heard").touch()
    try:
        torch_dist.load(folder / "root", {"model.other": torch.zeros(1)})
    except CheckpointError:
        (folder / f"rank{rank}.refused").touch()
    dist.destroy_process_group()


def main() -> None:
    """Forks the second rank."""
    folder = Path(sys.argv[1])
    child = os.fork()
    work(folder, 0 if child else 1)
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(status != 0)


if __name__ == "__main__":
    main()
