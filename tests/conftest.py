"""Several processes for a test; the long files first."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RANKS = Path(__file__).with_name("ranks.py")
FORKS = Path(__file__).with_name("forks.py")
LONG = ("ray", "examples", "train/test_axes", "train/test_resharding")
"""Beginnings of files that start many processes. With two workers, the last files should be short
ones: otherwise one works alone at the end."""


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist would begin with files of many tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def is_short(item: pytest.Item) -> bool:
        try:
            return not str(item.path.relative_to(RANKS.parent)).startswith(LONG)
        except ValueError:  # a test from elsewhere
            return True

    items.sort(key=is_short)  # keeps the order of those that are alike


@pytest.fixture(scope="session")
def python_with() -> Iterator[Callable[..., list[str]]]:
    """The beginning of a command that runs Python where modules are imported already; all of a
    worker's tests share one process that imports them. Plain Python where a process cannot be
    waited for beside a socket, as outside of Linux."""
    if not hasattr(os, "pidfd_open"):
        yield lambda *_: [sys.executable]
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, str(FORKS), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        ) as listening,
    ):
        assert listening.stdout is not None
        address = listening.stdout.readline().strip()
        yield lambda *modules: [sys.executable, "-S", str(FORKS), address, ",".join(modules)]


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory, python_with) -> Callable[[Callable[[int, int], Any], int], list]:
    """Runs a function of a test file, `function(rank, world)`, on `world` ranks with gloo; gives
    what each rank returned, which torch can save."""

    python = python_with("torch.distributed", "tandem.runtime.local")

    def run(function: Callable[[int, int], Any], world: int) -> list:
        import torch

        out = tmp_path_factory.mktemp(function.__name__)
        file = function.__code__.co_filename
        done = subprocess.run(
            [*python, str(RANKS), file, function.__name__, str(world), str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return run
