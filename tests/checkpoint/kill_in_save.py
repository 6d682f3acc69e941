"""Saves into many roots, each in a process that kills itself with SIGKILL at one stage.

    python kill_in_save.py FOLDER FIRST SECOND

For each stage, FOLDER/<stage> gets a whole save of iteration FIRST (none if FIRST is -1) that
holds ones, and then a save of SECOND that holds twos and dies at that stage.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint

from tandem.checkpoint import torch_dist

STAGES = ("started", "tensors", "written", "aside", "renamed", "tracked")


def state(value: float) -> dict[str, torch.Tensor]:
    """A small model and its optimizer, all of one value."""
    return {
        "model.weight": torch.full((32, 32), value),
        "optimizer.weight": torch.full((32, 32), value),
        "optimizer.step": torch.tensor(value),
    }


def save_and_die(root: Path, first: int, second: int, last: str) -> None:
    """Runs in a process of its own."""

    def on_stage(stage: str) -> None:
        if stage == last:
            os.kill(os.getpid(), signal.SIGKILL)

    if first >= 0:
        torch_dist.save(root, first, state(1.0), {"value": 1})
    torch_dist.save(root, second, state(2.0), {"value": 2}, on_stage=on_stage)


def main() -> None:
    """One child after the other; prints nothing, fails if a child was not killed as planned."""
    torch.set_num_threads(1)
    folder, first, second = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for stage in STAGES:
        child = os.fork()
        if child == 0:
            save_and_die(folder / stage, first, second, stage)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        # only a save of an iteration that is there has to make it step aside
        assert was_killed == (stage != "aside" or first == second), (stage, status)


if __name__ == "__main__":
    main()
