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

from tandem.algo import (
    NO_HOOKS,
    Hooks,
    Tokens,
    hooked_loss,
    loss,
    normaliser,
    wanted_columns,
    wants_entropy,
)
from tandem.checkpoint import torch_dist
from tandem.checkpoint.names import to_hugging_face
from tandem.config import AlgoConfig, BatchConfig, OptimConfig
from tandem.kernels.digest import digest_all
from tandem.models.decoder import Decoder, Recompute
from tandem.packing import ScoringRow, columns, num_steps, scoring_rows
from tandem.parallel import Layout
from tandem.train.canary import canary
from tandem.train.critic import Critic
from tandem.train.descent import Descent
from tandem.train.forward import Scoring, token_hidden, token_scores
from tandem.train.lora import Adapters
from tandem.train.schedule import Schedule
from tandem.train.snapshots import Snapshots, by_author
from tandem.types import Batch, Group, StepStats, Weights

STATE = "trainer"
"""The key of the trainer's small state in a checkpoint's `extra`."""
REFERENCE = "reference."
"""What the names of a reference that follows the policy begin with in a checkpoint."""


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
    hooks: Hooks = NO_HOOKS


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """The models that a trainer may need beside the policy; each None where it does not."""

    reference: Decoder | None = None
    teacher: Decoder | None = None
    critic: Critic | None = None
    adapters: Adapters | None = None


class LocalTrainer:
    """Owns the policy's weights and its optimizer; implements `contracts.Trainer`."""

    def __init__(
        self,
        decoder: Decoder,
        learning: Learning,
        reference: Decoder | None = None,
        *,
        beside: Beside | None = None,
    ) -> None:
        self._decoder = decoder
        self._learning = learning
        beside = Beside() if beside is None else beside
        self._reference = beside.reference if reference is None else reference
        self._teacher = beside.teacher
        for frozen in filter(None, (self._reference, self._teacher)):
            frozen.requires_grad_(False)
        self._critic, self._adapters = beside.critic, beside.adapters
        trained = decoder if self._adapters is None else self._adapters
        self._descent = Descent(
            trained.named_parameters(), learning.optim, learning.schedule, learning.step_size
        )
        self._snapshots = Snapshots() if learning.algo.keep_old_actor else None
        self._num_rollouts = 0  # learned from, over the whole run
        self._seconds: dict[str, float] = {}
        self._scoring = Scoring(
            temperature=learning.temperature, chunk=learning.batch.log_probs_chunk_size
        )

    @property
    def layout(self) -> Layout:
        """What `pack` must know of this trainer."""
        return self._learning.layout

    def annotate(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with the log-probs and values that the algorithm asks for, no more.

        Old log-probs come from the policy as it is now (with `--keep-old-actor` from the one that
        wrote the token), reference and teacher log-probs from their models, all at the rollout's
        temperature; values from the critic.
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
                found["old_logprobs"] = self._old_logprobs(groups, rows)
        for column, decoder, span in (
            ("reference_logprobs", self._reference, "ref_log_probs"),
            ("teacher_logprobs", self._teacher, "teacher_log_probs"),
        ):
            if column in wanted:
                assert decoder is not None, f"{column} are wanted of a model that is not there"
                with self._timed(span):
                    found[column] = columns(groups, rows, self._scores(decoder, rows))
        if "values" in wanted:
            assert self._critic is not None, "values without a critic"
            with self._timed("values"):
                found["values"] = columns(groups, rows, self._critic.values(rows))
        return tuple(
            replace(group, **{name: column[place] for name, column in found.items()})
            for place, group in enumerate(groups)
        )

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """One optimizer step for each inner list of batches, with a row of metrics for each.

        The critic learns first; in the first `num_critic_only_steps` rollouts it learns alone.
        Raises TandemError at a gradient that is not finite, before any weight has moved, unless
        `--no-check-for-nan-in-loss-and-grad` asks to skip such steps.
        """
        algo = self._learning.algo
        if self._learning.optim.reset_optimizer_states:
            self._descent.optimizer.forget()
            if self._critic is not None:
                self._critic.descent.optimizer.forget()
        moves_policy = self._critic is None or self._num_rollouts >= algo.num_critic_only_steps
        rows = []
        for batches in steps:
            row: dict[str, float] = {}
            if self._critic is not None:
                with self._timed("critic"):
                    row |= self._critic.step(batches, algo)
            if moves_policy:
                row |= self._step(batches)
            rows.append(row)
        self._num_rollouts += 1
        self._refresh_reference()
        num_tokens = sum(batch.num_tokens for batches in steps for batch in batches)
        seconds, self._seconds = self._seconds, {}
        return StepStats(rows=tuple(rows), num_tokens=num_tokens, seconds=seconds)

    def weights(self, version: int) -> Weights:
        """The policy's weights under Hugging Face names, with the proofs that they arrived.

        Tensors are the trainer's own storage, or copies where our layout differs; adapters are
        merged into them.
        """
        if self._snapshots is not None:
            self._snapshots.take(version, self._decoder)
        return Weights(
            version=version,
            named=self._named(),
            is_shared=True,
            digests=digest_all((name, p.detach()) for name, p in self._decoder.named_parameters()),
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
        """The folder that holds all of it: models, optimizers, schedules, `extra` of other rooms.

        It is written in one piece or not at all (`checkpoint.torch_dist`). Adapters are also
        written in PEFT's form, to `lora/` beside it.
        """
        assert STATE not in extra, f"{STATE!r} in a checkpoint's extra is the trainer's own"
        tensors = self._weight_tensors()
        if with_optimizer:
            tensors |= self._optimizer_tensors()
        state: dict[str, Any] = {**self._descent.state(), "num_rollouts": self._num_rollouts}
        if self._critic is not None:
            state["critic"] = self._critic.descent.state()
        folder = torch_dist.save(root, iteration, tensors, {**extra, STATE: state})
        if self._adapters is not None:
            self._adapters.save(Path(root) / "lora" / folder.name)
        return folder

    def load(self, root: str | Path, iteration: int | None = None) -> dict[str, Any]:
        """The other rooms' `extra`, after everything that `save` wrote is back in place.

        Raises CheckpointError when anything is missing or of another model; nothing has changed
        then.
        """
        tensors = self._weight_tensors() | self._optimizer_tensors()
        extra = torch_dist.load(root, tensors, iteration)
        state = extra.pop(STATE)
        self._descent.restore(state)
        self._num_rollouts = state["num_rollouts"]
        if self._critic is not None:
            self._critic.descent.restore(state["critic"])
        return extra

    def load_weights(self, root: str | Path, iteration: int | str | None = None) -> dict[str, Any]:
        """The `extra` of a checkpoint of which the models alone are taken; all else starts afresh.

        Raises CheckpointError when one of them is not in it.
        """
        extra: dict[str, Any] = {}
        for prefix, tensors in self._weight_parts().items():
            extra = torch_dist.load(root, tensors, iteration, prefix=prefix)
        self._descent.start_afresh()
        if self._critic is not None:
            self._critic.descent.start_afresh()
        self._num_rollouts = 0
        return extra

    def state_digest(self) -> dict[str, int]:
        """A digest of every tensor that a checkpoint holds."""
        return digest_all((self._weight_tensors() | self._optimizer_tensors()).items())

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        named = ((name, p.detach()) for name, p in self._decoder.named_parameters())
        return to_hugging_face(self._decoder.shape, named)

    def _weight_parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of every model that changes in a run, by what their names begin with."""
        parts = {torch_dist.MODEL: _tensors_of(self._decoder, torch_dist.MODEL)}
        if self._critic is not None:
            parts["critic.model."] = self._critic.model_tensors()
        if self._adapters is not None:
            parts["lora."] = self._adapters.tensors()
        if self._reference is not None and self._learning.algo.ref_update_interval is not None:
            parts[REFERENCE] = _tensors_of(self._reference, REFERENCE)
        return parts

    def _weight_tensors(self) -> dict[str, Tensor]:
        parts = self._weight_parts().values()
        return {name: tensor for part in parts for name, tensor in part.items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = self._descent.optimizer.tensors()
        return tensors if self._critic is None else tensors | self._critic.optimizer_tensors()

    def _old_logprobs(
        self, groups: Sequence[Group], rows: Sequence[ScoringRow]
    ) -> list[tuple[np.ndarray, ...]]:
        if self._snapshots is None:
            return columns(groups, rows, self._scores(self._decoder, rows))
        by_version = {
            version: columns(groups, rows, self._scores(decoder, rows))
            for version, decoder in self._snapshots.authors(groups).items()
        }
        return by_author(groups, by_version)

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
            row = self._descent.step(totals)
            if self._adapters is not None:
                self._adapters.merge()
        return row

    def _accumulate(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The step's metrics on the device, after the gradients of all batches were summed."""
        scale = self._correction_scale(batches)
        totals: dict[str, Tensor] = {}
        for batch in batches:
            value, metrics = self._loss(batch, scale)
            value.backward()
            for name, metric in metrics.items():
                totals[name] = totals[name] + metric if name in totals else metric
        return totals

    def _loss(self, batch: Batch, scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        algo, hooks = self._learning.algo, self._learning.hooks
        if algo.loss_type == "custom_loss":
            moved, hidden_TD = token_hidden(self._decoder, batch, self._learning.recompute)
            return hooked_loss(moved, self._decoder.logits(hidden_TD), hooks)
        how = replace(
            self._scoring,
            recompute=self._learning.recompute,
            wants_entropy=wants_entropy(algo),
            entropy_has_gradient=algo.entropy_coef != 0,
        )
        moved, logprobs_T, entropy_T = token_scores(self._decoder, batch, how)
        return loss(moved, logprobs_T, entropy_T, algo, hooks=hooks, scale=scale)

    def _correction_scale(self, batches: Sequence[Batch]) -> float:
        """What makes the correction weights of a whole step 1 on average, where that is asked."""
        if not self._learning.algo.tis_batch_normalize:
            return 1.0
        rows = []
        for batch in batches:
            trainer_T, engine_T = batch.old_logprobs_T, batch.engine_logprobs_T
            assert trainer_T is not None and engine_T is not None, "weights without log-probs"
            rows.append(Tokens(trainer_T, engine_T, batch.mask_T, batch.bounds_S))
        return normaliser(rows, self._learning.algo)

    @torch.no_grad()
    def _refresh_reference(self) -> None:
        interval = self._learning.algo.ref_update_interval
        if self._reference is None or interval is None or self._num_rollouts % interval:
            return
        theirs = dict(self._reference.named_parameters())
        for name, parameter in self._decoder.named_parameters():
            theirs[name].copy_(parameter)

    def _wait(self) -> None:
        if self._decoder.head_weight.is_cuda:
            torch.cuda.synchronize()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin_s
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def _tensors_of(decoder: Decoder, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: parameter.detach() for name, parameter in decoder.named_parameters()}
