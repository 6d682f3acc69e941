"""The part of a model that a process runs, together with the processes that run the rest."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from tandem.models.decoder import Decoder, Recompute
from tandem.parallel.collectives import sum_
from tandem.train.forward import Row, Scoring, hidden_of, row_for, scores_of
from tandem.train.routes import Routes
from tandem.train.timetable import Move, Tick, timetable
from tandem.types import Batch

Finish = Callable[[Decoder, Row, Tensor], Tensor]
"""What the last stage makes of a row's hidden states: its loss, or its scores."""

NUM_IN_FLIGHT = 2
"""Ticks whose messages may be on their way: a stage that runs ahead would fill the memory."""


class Model:
    """Owns the parts of a decoder on this process: one, or one for each virtual stage."""

    def __init__(self, parts: Sequence[Decoder]) -> None:
        self.parts = tuple(parts)
        self.mesh = parts[0].part.mesh
        self.shape = parts[0].shape
        self.device = parts[0].device
        # the tensors that are trained: found once, since a walk over all modules takes as long as
        # the rest of what the host does for a weight update
        self._named = tuple(named for part in parts for named in part.named_parameters())
        if self.mesh.pipeline.size > 1:
            # NCCL wants all processes of a group at its first call; messages go between two
            sum_(torch.zeros(1, device=self.device), self.mesh.pipeline)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters of this process, by our name with the layer's number in the model."""
        yield from self._named

    @property
    def is_whole(self) -> bool:
        """Whether this process holds every tensor, whole."""
        return self.mesh.sizes.is_whole

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Every parameter, in place, by its name behind `prefix`."""
        return {prefix + name: p.detach() for name, p in self.named_parameters()}

    def like(self) -> "Model":
        """Another model of the same parts, its weights unfilled and frozen."""
        parts = [Decoder(self.shape, p.dtype, self.device, p.part) for p in self.parts]
        return Model([part.requires_grad_(False) for part in parts])

    @torch.no_grad()
    def copy_from(self, other: "Model") -> None:
        """Takes over the weights of a model of the same parts."""
        theirs = dict(other.named_parameters())
        for name, parameter in self.named_parameters():
            parameter.copy_(theirs[name])

    @torch.no_grad()
    def scores(
        self, batches: Sequence[Batch], how: Scoring, routes: Routes | None = None
    ) -> list[np.ndarray]:
        """The log-probs of each batch's targets, `[T]`, on the host of every process."""
        found: dict[int, Tensor] = {}

        def finish(part: Decoder, row: Row, hidden_TD: Tensor) -> Tensor:
            logprobs_T, _ = scores_of(part, row, hidden_TD, how)
            found[len(found)] = logprobs_T
            return logprobs_T

        self._pass(batches, finish, None, routes, trains=False)
        if self.mesh.pipeline.size > 1:
            # the last stage alone has them
            rows = [
                found.get(i, torch.zeros(len(batch.tokens_T), device=self.device))
                for i, batch in enumerate(batches)
            ]
            joined = sum_(torch.cat(rows), self.mesh.pipeline)
            found = dict(enumerate(joined.split([len(row) for row in rows])))
        return [found[i].cpu().numpy() for i in range(len(batches))]

    def learn(
        self,
        batches: Sequence[Batch],
        finish: Finish,
        recompute: Recompute | None,
        routes: Routes | None = None,
    ) -> None:
        """Adds the gradients of `finish`, a loss, over all batches to those of the parameters."""
        self._pass(batches, finish, recompute, routes, trains=True)

    def _pass(
        self,
        batches: Sequence[Batch],
        finish: Finish,
        recompute: Recompute | None,
        routes: Routes | None,
        *,
        trains: bool,
    ) -> None:
        axis = self.mesh.pipeline
        run = _Pass(self, batches, finish, recompute, routes or Routes(), trains=trains)
        for tick in timetable(axis.size, len(self.parts), len(batches), trains=trains):
            run.make(tick)
        run.end()


class _Exchange:
    """Messages on their way; their tensors must live as long."""

    def __init__(self, messages: list[dist.P2POp]) -> None:
        self._tensors = [message.tensor for message in messages]
        self._works = dist.batch_isend_irecv(messages)

    def wait(self) -> None:
        """Returns when they arrived; on CUDA what is queued from now on waits."""
        for work in self._works:
            work.wait()
        self._works, self._tensors = [], []


class _Pass:
    """Rows on their way through the stages."""

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        finish: Finish,
        recompute: Recompute | None,
        routes: Routes,
        *,
        trains: bool,
    ) -> None:
        self._routes = routes
        self._model, self._batches, self._finish = model, batches, finish
        self._recompute, self._trains = recompute, trains
        self._axis = model.mesh.pipeline
        self._num_stages = self._axis.size * len(model.parts)
        self._kept: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        self._arriving: dict[Move, tuple[Tensor, _Exchange]] = {}
        self._in_flight: deque[_Exchange] = deque()

    def make(self, tick: Tick) -> None:
        """Makes this process's move and starts the messages that follow from all moves."""
        own = tick[self._axis.rank]
        made = None
        if own is not None:
            made = self._forward(own) if own.is_forward else self._backward(own)
        messages, arrivals = [], {}
        for sender, move in enumerate(tick):
            next_move = None if move is None else self._follows(move)
            if next_move is None:
                continue
            receiver = next_move.stage % self._axis.size
            if sender == self._axis.rank:
                assert made is not None, f"{move} gave nothing to pass on"
                messages.append(self._message(dist.isend, made, receiver))
            elif receiver == self._axis.rank:
                arrivals[next_move] = self._room(next_move.row)
                messages.append(self._message(dist.irecv, arrivals[next_move], sender))
        if messages:
            exchange = _Exchange(messages)
            self._arriving |= {move: (tensor, exchange) for move, tensor in arrivals.items()}
            self._in_flight.append(exchange)
            if len(self._in_flight) > NUM_IN_FLIGHT:
                self._in_flight.popleft().wait()

    def end(self) -> None:
        """Waits for what is still on its way."""
        for exchange in self._in_flight:
            exchange.wait()
        assert not self._kept and not self._arriving, "rows were left on their way"

    def _forward(self, move: Move) -> Tensor | None:
        part = self._model.parts[move.stage // self._axis.size]
        stream = self._arrived(move) if move.stage else None
        if self._trains and stream is not None:
            stream.requires_grad_()
        row = row_for(part, self._batches[move.row])
        routing = self._routes.of(move.row, part, row)
        out = hidden_of(part, row, self._recompute, stream, routing)
        is_last = move.stage == self._num_stages - 1
        if is_last:
            out = self._finish(part, row, out)
        if self._trains:
            self._kept[move.stage, move.row] = (stream, out)
        return None if is_last else out.detach()

    def _backward(self, move: Move) -> Tensor | None:
        stream, out = self._kept.pop((move.stage, move.row))
        if move.stage == self._num_stages - 1:
            out.backward()
        else:
            out.backward(self._arrived(move))
        return None if stream is None else stream.grad

    def _arrived(self, move: Move) -> Tensor:
        tensor, exchange = self._arriving.pop(move)
        exchange.wait()
        return tensor

    def _follows(self, move: Move) -> Move | None:
        """The move that takes what this one gives."""
        stage = move.stage + (1 if move.is_forward else -1)
        if not 0 <= stage < self._num_stages:
            return None
        return Move(move.is_forward, stage, move.row)

    def _message(self, kind: Callable, tensor: Tensor, other: int) -> dist.P2POp:
        return dist.P2POp(kind, tensor.contiguous(), self._axis.ranks[other], self._axis.group)

    def _room(self, row: int) -> Tensor:
        """Where the stream of a row, or its gradient, goes: this process's tokens of it."""
        mesh, part = self._model.mesh, self._model.parts[0].part
        num_tokens = len(self._batches[row].tokens_T) // mesh.context.size
        if part.splits_rows:
            num_tokens //= mesh.tensor.size
        return torch.empty(num_tokens, self._model.shape.width, device=self._model.device)
