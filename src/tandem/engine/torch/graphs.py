"""Decode steps that a GPU replays: captured once for each padded number of rows.

A step's launches cost the host more than a small batch costs the device, so they are recorded and
replayed. Everything that changes from step to step lies in buffers whose place and size stay: rows
that are only there to fill up have length 0 and write nothing.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem.contracts import Attend
from tandem.engine.torch.attend import GroupedDecodeAttend
from tandem.engine.torch.grouping import end_together, find_groups, suffixes
from tandem.engine.torch.memory import expert_sizes
from tandem.kernels.device import KEYS_TOGETHER
from tandem.kernels.replay import CAPTURE
from tandem.models.decoder import Decoder
from tandem.models.experts import Routing

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128)
"""Rows of the smaller graphs; above them a graph every `STEP` rows."""

STEP = 32


def padded_rows(rows: int) -> int:
    """The number of rows of the graph that a step of `rows` rows runs in."""
    for size in SIZES:
        if rows <= size:
            return size
    return -(-rows // STEP) * STEP


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a graph reads. Tables are as wide as the longest sequence may get."""

    tokens_R: Tensor
    positions_R: Tensor
    places_R: Tensor
    lengths_R: Tensor  # of what a row does not share
    table_RB: Tensor
    prefix_table_GB: Tensor
    prefix_lengths_G: Tensor
    bounds_G: Tensor
    experts_RLk: Tensor | None  # written, if experts are recorded


@dataclass(frozen=True, slots=True)
class Graph:
    """A captured step: replaying it fills `hidden_RD` from the buffers."""

    replayed: torch.cuda.CUDAGraph
    buffers: Buffers
    hidden_RD: Tensor


class DecodeGraphs:
    """Captures a graph when its size is first needed, over one cache; all share one memory pool."""

    def __init__(
        self,
        decoder: Decoder,
        cache: Tensor,
        *,
        block_size: int,
        records_experts: bool = False,
    ) -> None:
        self._records_experts = records_experts
        self._decoder, self._cache = decoder, cache
        self._block_size = block_size
        self._unit = KEYS_TOGETHER // math.gcd(KEYS_TOGETHER, block_size)  # blocks
        most_tokens = min(decoder.shape.max_positions, cache.shape[2] * block_size)
        self._width = -(-most_tokens // block_size)
        self._graphs: dict[int, Graph] = {}
        self._pool: Any = None
        self._stream = torch.cuda.Stream()  # of every capture: they share what it frees

    def hidden(
        self,
        tokens_R: Tensor,
        positions_R: np.ndarray,
        places_R: np.ndarray,
        lengths_R: np.ndarray,
        table_RB: np.ndarray,
        rank_R: np.ndarray,
    ) -> tuple[Tensor, Tensor | None]:
        """The hidden states `[R, D]` of one decode step and, if they are recorded, the experts
        `[R, L, k]` that were taken; read them before the next one."""
        rows = len(positions_R)
        size = padded_rows(rows)
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph = self._graphs[size]
        buffers, missing = graph.buffers, (0, size - rows)
        buffers.tokens_R[:rows].copy_(tokens_R)
        _fill(buffers.positions_R, np.pad(positions_R, missing))
        _fill(buffers.places_R, np.pad(places_R, missing, constant_values=-1))
        lengths_R, table_RB = self._fill_prefixes(buffers, lengths_R, table_RB, rank_R)
        _fill(buffers.lengths_R, np.pad(lengths_R, missing))
        _fill_table(buffers.table_RB, table_RB)
        graph.replayed.replay()
        experts_RLk = buffers.experts_RLk
        return graph.hidden_RD[:rows], None if experts_RLk is None else experts_RLk[:rows]

    def _fill_prefixes(
        self, buffers: Buffers, lengths_R: np.ndarray, table_RB: np.ndarray, rank_R: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fills in what rows share; gives the lengths and table of what they do not."""
        size = len(buffers.prefix_lengths_G)
        groups = find_groups(table_RB, (lengths_R - 1) // self._block_size, rank_R)
        groups = end_together(groups, self._unit)
        missing = (0, size - len(groups.shared_G))
        block = np.int32(self._block_size)
        _fill(buffers.prefix_lengths_G, np.pad(groups.shared_G * block, missing))
        _fill(buffers.bounds_G, np.pad(groups.bounds_G, missing, mode="edge"))
        if not groups.is_shared:
            return lengths_R, table_RB
        shared_R = groups.shared_R
        widest = int(groups.shared_G.max())
        _fill_table(buffers.prefix_table_GB, table_RB[groups.bounds_G[:-1], :widest])
        return lengths_R - shared_R * block, suffixes(table_RB, shared_R)

    def _capture(self, size: int) -> Graph:
        buffers = self._new_buffers(size)
        attend, routing = self._attend(buffers), Routing(recorded_TLk=buffers.experts_RLk)

        def step() -> Tensor:
            return self._decoder(buffers.tokens_R, buffers.positions_R, attend, routing=routing)

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step()  # kernels are compiled and libraries set up outside of the graph
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode=CAPTURE
        ):
            hidden_RD = step()
        self._pool = graph.pool()
        return Graph(graph, buffers, hidden_RD)

    def _attend(self, buffers: Buffers) -> Attend:
        return GroupedDecodeAttend(
            self._cache,
            places_R=buffers.places_R,
            prefix_table_GB=buffers.prefix_table_GB,
            prefix_lengths_G=buffers.prefix_lengths_G,
            bounds_G=buffers.bounds_G,
            suffix_table_RB=buffers.table_RB,
            suffix_lengths_R=buffers.lengths_R,
        )

    def _new_buffers(self, size: int) -> Buffers:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._cache.device)

        experts_RLk = None
        if self._records_experts:
            experts_RLk = zeros(size, *expert_sizes(self._decoder.shape), dtype=torch.int16)
        return Buffers(
            tokens_R=zeros(size, dtype=torch.int64),
            positions_R=zeros(size, dtype=torch.int64),
            places_R=zeros(size, dtype=torch.int64).fill_(-1),
            lengths_R=zeros(size),
            table_RB=zeros(size, self._width),
            prefix_table_GB=zeros(size, self._width),
            prefix_lengths_G=zeros(size),
            bounds_G=torch.arange(size + 1, dtype=torch.int32, device=self._cache.device),
            experts_RLk=experts_RLk,
        )


def _fill(buffer: Tensor, values: np.ndarray) -> None:
    host = torch.from_numpy(np.ascontiguousarray(values)).pin_memory()
    buffer.copy_(host, non_blocking=True)


def _fill_table(buffer_RB: Tensor, table_RB: np.ndarray) -> None:
    """Writes the upper left corner; what lies outside of it is not read."""
    rows, width = table_RB.shape
    host = torch.from_numpy(np.ascontiguousarray(table_RB)).pin_memory()
    buffer_RB[:rows, :width].copy_(host.to(buffer_RB.device, non_blocking=True))
