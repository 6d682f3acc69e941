"""A computation that is asked for again and again with nothing changed but what tensors hold."""

import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from tandem.kernels.later import Later

Run = Callable[[], Tensor]

CAPTURE = "thread_local"
"""What a capture forbids: calls of its own thread. Others, as those that watch over collectives,
go on asking the device."""


class Replayed:
    """Runs a computation; on CUDA, from the third time on as a graph that the second one recorded.

    Its hundreds of launches cost the host more than a few rows cost the device. What is recorded
    holds addresses, so it serves while the key, which names them, is the same. A graph runs on a
    stream of its own, beside what is launched after it: few rows leave most of a device idle. Where
    none can be recorded, which is said in a warning, the computation is run as it is.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._run: Run | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_recordable = True
        self._stream: torch.cuda.Stream | None = None
        self._out: Tensor | None = None

    @torch.no_grad()
    def __call__(self, key: Hashable, prepare: Callable[[], Run]) -> Later:
        """What the computation gives; read it before the next call. `prepare` makes it, once a
        key, with inputs that stay where they are."""
        if self._run is None or key != self._key:
            self._key, self._run = key, prepare()
            self._graph = self._out = None
            return Later(self._run())
        if self._graph is None and self._is_recordable:
            self._record()
        if self._graph is None:
            return Later(self._run())
        assert self._stream is not None and self._out is not None, "a graph has both"
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._graph.replay()
            return Later(self._out)

    def _record(self) -> None:
        assert self._run is not None, "a computation was prepared"
        stream = self._stream = self._stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                self._run()  # libraries are set up outside of the graph
                with torch.cuda.graph(graph, stream=stream, capture_error_mode=CAPTURE):
                    self._out = self._run()
        except RuntimeError as error:
            self._is_recordable = False
            warnings.warn(f"no CUDA graph could be recorded: {error}", stacklevel=3)
        else:
            self._graph = graph

    def settle(self) -> None:
        """What is launched from now on comes after it: its inputs may be changed."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


def places_of(module: torch.nn.Module) -> tuple[int, ...]:
    """Where the parameters lie: a key for what reads nothing else that could move."""
    return tuple(parameter.data_ptr() for parameter in module.parameters())
