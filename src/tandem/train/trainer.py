"""The training stage on one device: log-probs before the steps, the steps, and the weights."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem.algo import loss, wanted_columns, wants_entropy
from tandem.checkpoint import torch_dist
from tandem.checkpoint.names import to_hugging_face
from tandem.config import AlgoConfig, BatchConfig, OptimConfig
from tandem.errors import TandemError
from tandem.kernels.digest import digest_all
from tandem.models.decoder import Decoder, Recompute
from tandem.packing import ScoringRow, columns, num_steps, scoring_rows
from tandem.parallel import Layout
from tandem.train.canary import canary
from tandem.train.forward import Scoring, token_scores
from tandem.train.optimizer import AdamW
from tandem.train.schedule import Schedule
from tandem.types import Batch, Group, StepStats, Weights

STATE = "trainer"
"""The key of the trainer's small state in a checkpoint's `extra`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Every setting that the trainer reads."""

    algo: AlgoConfig
    batch: BatchConfig
    optim: OptimConfig
    schedule: Schedule
    step_size: int  # rollouts (attempts) of a full optimizer step
    layout: Layout = field(default_factory=Layout)
    temperature: float = 1.0
    recompute: Recompute | None = None


class LocalTrainer:
    """Owns the policy's weights and its optimizer; implements `contracts.Trainer`."""

    def __init__(
        self, decoder: Decoder, learning: Learning, reference: Decoder | None = None
    ) -> None:
        self._decoder = decoder
        self._learning = learning
        self._reference = None if reference is None else reference.requires_grad_(False)
        self._optimizer = AdamW(decoder.named_parameters(), learning.optim)
        self._num_steps = 0  # taken, over the whole run
        self._consumed = 0  # rollouts learned from: the clock of the schedule
        self._seconds: dict[str, float] = {}
        self._scoring = Scoring(
            temperature=learning.temperature, chunk=learning.batch.log_probs_chunk_size
        )

    @property
    def layout(self) -> Layout:
        """What `pack` must know of this trainer."""
        return self._learning.layout

    def annotate(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with the log-probs that the algorithm asks for, no more.

        Old log-probs come from the policy as it is now, reference log-probs from the reference
        model, both at the rollout's temperature.
        """
        self._seconds = {}
        cfg, algo = self._learning.batch, self._learning.algo
        wanted = wanted_columns(algo, num_steps(groups, cfg))
        if not wanted:
            return tuple(groups)
        rows = scoring_rows(groups, self.layout, cfg, algo)
        found: dict[str, Any] = {}  # a column for each group
        if "old_logprobs" in wanted:
            with self._timed("log_probs"):
                found["old_logprobs"] = columns(groups, rows, self._scores(self._decoder, rows))
        if "reference_logprobs" in wanted:
            assert self._reference is not None, "a KL term without a reference model"
            with self._timed("ref_log_probs"):
                scores = self._scores(self._reference, rows)
                found["reference_logprobs"] = columns(groups, rows, scores)
        return tuple(
            replace(group, **{name: column[place] for name, column in found.items()})
            for place, group in enumerate(groups)
        )

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """One optimizer step for each inner list of batches, with a row of metrics for each.

        Raises TandemError at a gradient that is not finite, before any weight has moved, unless
        `--no-check-for-nan-in-loss-and-grad` asks to skip such steps.
        """
        if self._learning.optim.reset_optimizer_states:
            self._optimizer.forget()
        rows = tuple(self._step(batches) for batches in steps)
        num_tokens = sum(batch.num_tokens for batches in steps for batch in batches)
        seconds, self._seconds = self._seconds, {}
        return StepStats(rows=rows, num_tokens=num_tokens, seconds=seconds)

    def weights(self, version: int) -> Weights:
        """The policy's weights under Hugging Face names, with the proofs that they arrived.

        Tensors are the trainer's own storage, or copies where our layout differs.
        """
        return Weights(
            version=version,
            named=self._named(),
            is_shared=True,
            digests=digest_all(self._named()),
            canary=canary(self._decoder),
        )

    def save(
        self,
        root: str | Path,
        iteration: int,
        extra: Mapping[str, Any],
        *,
        with_optimizer: bool = True,
    ) -> Path:
        """The folder that holds all of it: model, optimizer, schedule, and `extra` of other rooms.

        It is written in one piece or not at all (`checkpoint.torch_dist`).
        """
        assert STATE not in extra, f"{STATE!r} in a checkpoint's extra is the trainer's own"
        tensors = self._model_tensors()
        if with_optimizer:
            tensors |= self._optimizer.tensors()
        state = {"num_steps": self._num_steps, "consumed": self._consumed}
        return torch_dist.save(root, iteration, tensors, {**extra, STATE: state})

    def load(self, root: str | Path, iteration: int | None = None) -> dict[str, Any]:
        """The other rooms' `extra`, after everything that `save` wrote is back in place.

        Raises CheckpointError when anything is missing or of another model; nothing has changed
        then.
        """
        tensors = self._model_tensors() | self._optimizer.tensors()
        extra = torch_dist.load(root, tensors, iteration)
        state = extra.pop(STATE)
        self._num_steps, self._consumed = state["num_steps"], state["consumed"]
        return extra

    def load_weights(self, root: str | Path, iteration: int | str | None = None) -> dict[str, Any]:
        """The `extra` of a checkpoint of which the model alone is taken; all else starts afresh."""
        extra = torch_dist.load(root, self._model_tensors(), iteration, prefix=torch_dist.MODEL)
        self.adopt_weights()
        return extra

    def adopt_weights(self) -> None:
        """Starts training afresh from what the decoder holds now; call it after loading into it."""
        self._optimizer.adopt()
        self._optimizer.forget()
        self._num_steps = self._consumed = 0

    def state_digest(self) -> dict[str, int]:
        """A digest of every tensor that a checkpoint holds."""
        return digest_all((self._model_tensors() | self._optimizer.tensors()).items())

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        named = ((name, p.detach()) for name, p in self._decoder.named_parameters())
        return to_hugging_face(self._decoder.shape, named)

    def _model_tensors(self) -> dict[str, Tensor]:
        named = self._decoder.named_parameters()
        return {torch_dist.MODEL + name: parameter.detach() for name, parameter in named}

    @torch.no_grad()
    def _scores(self, decoder: Decoder, rows: Sequence[ScoringRow]) -> list[np.ndarray]:
        """The log-probs of each row, on the host."""
        scored = [token_scores(decoder, row.batch, self._scoring)[1] for row in rows]
        return [logprobs_T.cpu().numpy() for logprobs_T in scored]

    def _step(self, batches: Sequence[Batch]) -> dict[str, float]:
        with self._timed("forward_backward"):
            totals = self._accumulate(batches)
            self._wait()
        with self._timed("optimizer"):
            lr = self._learning.schedule.lr(self._consumed)
            totals["grad_norm"] = self._optimizer.step(lr)
            row = _to_host(totals)
        is_taken = bool(np.isfinite(row["grad_norm"]))
        if not is_taken and not self._learning.optim.no_check_for_nan_in_loss_and_grad:
            raise TandemError(
                f"optimizer step {self._num_steps}: the gradient norm is {row['grad_norm']} and "
                f"the loss {row['loss']}; no weight was changed. Resume from the last checkpoint "
                "with a smaller --lr, look at this step's samples, or pass "
                "--no-check-for-nan-in-loss-and-grad to skip such steps"
            )
        row |= {"lr-pg_0": lr, "global_batch_size": self._learning.step_size}
        row |= {"step": self._num_steps, "skipped": float(not is_taken)}
        if is_taken:
            self._num_steps += 1
            self._consumed += self._learning.step_size
        return row

    def _accumulate(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The step's metrics on the device, after the gradients of all batches were summed."""
        algo = self._learning.algo
        how = replace(
            self._scoring,
            recompute=self._learning.recompute,
            wants_entropy=wants_entropy(algo),
            entropy_has_gradient=algo.entropy_coef != 0,
        )
        totals: dict[str, Tensor] = {}
        for batch in batches:
            moved, logprobs_T, entropy_T = token_scores(self._decoder, batch, how)
            value, metrics = loss(moved, logprobs_T, entropy_T, algo)
            value.backward()
            for name, metric in metrics.items():
                totals[name] = totals[name] + metric if name in totals else metric
        return totals

    def _wait(self) -> None:
        if self._decoder.head_weight.is_cuda:
            torch.cuda.synchronize()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin_s
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def _to_host(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The scalars as floats, in one copy from the device."""
    values = torch.stack([value.double() for value in totals.values()]).tolist()
    return dict(zip(totals, values, strict=True))
