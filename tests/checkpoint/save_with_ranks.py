"""Two ranks save a sharded tensor, load it back, and share a fault of the first.

python save_with_ranks.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint

from tandem.checkpoint import torch_dist
from tandem.checkpoint.pieces import Piece
from tandem.errors import CheckpointError

WHOLE = torch.arange(40.0).reshape(10, 4)


def rows(whole: torch.Tensor, rank: int) -> Piece:
    """Uneven rows: the last rank has fewer."""
    start, stop = ((0, 7), (7, 10))[rank]
    return Piece(tensor=whole[start:stop].clone(), global_shape=(10, 4), starts=(start, 0))


def columns(whole: torch.Tensor, rank: int) -> Piece:
    """Half of the columns."""
    part = whole[:, 2 * rank : 2 * rank + 2].clone()
    return Piece(tensor=part, global_shape=(10, 4), starts=(0, 2 * rank))


def work(folder: Path, rank: int) -> None:
    """What each rank does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    state = {"model.sharded": rows(WHOLE, rank), "model.same": torch.ones(3)}
    torch_dist.save(folder / "root", 7, state, {"seed": 5})

    for cut in (rows, columns):  # read as it was written, and divided otherwise
        empty = {"model.sharded": cut(torch.zeros(10, 4), rank), "model.same": torch.zeros(3)}
        assert torch_dist.load(folder / "root", empty) == {"seed": 5}
        assert empty["model.sharded"].tensor.equal(cut(WHOLE, rank).tensor)
    # one rank may want what the other does not
    name = ("model.sharded", "model.same")[rank]
    wanted = {name: torch.zeros((10, 4) if rank == 0 else 3)}
    torch_dist.load(folder / "root", wanted)
    assert wanted[name].equal(WHOLE if rank == 0 else torch.ones(3))

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
