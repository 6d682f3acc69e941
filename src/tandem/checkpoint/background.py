"""Saving while training goes on: a copy in host memory, written by a thread."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tandem.checkpoint import torch_dist
from tandem.checkpoint.pieces import Piece, Pieces, as_pieces

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BackgroundSaves:
    """Writes one checkpoint at a time, of the state as it was when `save` was called.

    The copy takes as much host memory as this process's part of the state, which is kept for the
    next save. What goes wrong in the thread is raised by the next `save` or `wait`; the earlier
    checkpoint stays loadable then, as it does when the process is killed.
    """

    def __init__(self, process_group: "ProcessGroup | None" = None) -> None:
        """`process_group`: one of its own for the thread's collectives, None for one process.

        Collectives of training must not meet those of a save on the same group.
        """
        self._group = process_group
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def save(
        self,
        root: str | Path,
        iteration: torch_dist.Iteration,
        tensors: Pieces,
        extra: Mapping[str, Any] | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Path:
        """The folder that will be there; returns when the state is copied and may change again.

        Waits for the save before this one. Every rank calls it.
        """
        self.wait()
        copied = self._copied(as_pieces(tensors))

        def work() -> None:
            try:
                torch_dist.save(
                    root, iteration, copied, extra, process_group=self._group, on_stage=on_stage
                )
            except BaseException as fault:  # raised where somebody waits for it
                self._fault = fault

        self._thread = threading.Thread(target=work, name=f"save of {iteration}")
        self._thread.start()
        return torch_dist.folder_of(root, iteration)

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _copied(self, pieces: Mapping[str, Piece]) -> dict[str, Piece]:
        found = {}
        for name, piece in pieces.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != piece.tensor.shape or copy.dtype != piece.tensor.dtype:
                is_pinned = piece.tensor.is_cuda
                copy = torch.empty(
                    piece.tensor.shape, dtype=piece.tensor.dtype, pin_memory=is_pinned
                )
                self._copies[name] = copy
            copy.copy_(piece.tensor, non_blocking=True)
            found[name] = replace(piece, tensor=copy)
        if any(piece.tensor.is_cuda for piece in pieces.values()):
            torch.cuda.synchronize()
        return found
