"""The training stage on one device: log-probs before the steps, the steps, and the weights."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem.algo import Tokens, normaliser, wanted_columns
from tandem.checkpoint import torch_dist
from tandem.checkpoint.background import BackgroundSaves
from tandem.checkpoint.hugging_face import save_hugging_face
from tandem.checkpoint.pieces import Pieces, as_pieces
from tandem.kernels.digest import digest_all
from tandem.kernels.replay import Replayed
from tandem.models.decoder import Decoder
from tandem.packing import ScoringRow, columns, num_steps, scoring_rows
from tandem.parallel import Layout
from tandem.train.descent import Descent
from tandem.train.learning import Beside, Learning, Parts, loss_into
from tandem.train.model import Model
from tandem.train.pieces import model_pieces, optimizer_pieces, shards_of
from tandem.train.publish import named_of, weights_of
from tandem.train.routes import Routes, with_experts
from tandem.train.snapshots import Snapshots, by_author
from tandem.train.together import longest, spreads_of, summed_numbers, whole_columns
from tandem.types import Batch, Group, StepStats, Weights

STATE = "trainer"
"""The key of the trainer's small state in a checkpoint's `extra`."""
REFERENCE = "reference."
"""What the names of a reference that follows the policy begin with in a checkpoint."""


class LocalTrainer:
    """Owns the policy's weights and its optimizer; implements `contracts.Trainer`.

    On a mesh of several processes each runs one of these on its parts of the policy: all call the
    same methods in the same order, with the same groups and with their own data rank's batches,
    and get the same columns, metrics and weights.
    """

    def __init__(
        self,
        decoder: Parts,
        learning: Learning,
        reference: Decoder | None = None,
        *,
        beside: Beside | None = None,
        saves: BackgroundSaves | None = None,
    ) -> None:
        """`saves` writes checkpoints while training goes on; without it `save` waits."""
        self._saves = saves
        self._model = model_of(decoder)
        self._learning, self._mesh = learning, self._model.mesh
        beside = Beside() if beside is None else beside
        self._reference = frozen_model(beside.reference if reference is None else reference)
        self._teacher = frozen_model(beside.teacher)
        self._critic, self._adapters = beside.critic, beside.adapters
        trained = self._model if self._adapters is None else self._adapters
        self._descent = Descent(
            [(name, p) for name, p in trained.named_parameters() if p.requires_grad],
            learning.optim,
            learning.schedule,
            learning.step_size,
            spreads=spreads_of(self._model.parts) if self._adapters is None else None,
            mesh=self._mesh,
        )
        descents = [self._descent, *([] if self._critic is None else [self._critic.descent])]
        self._sleepers = [descent.optimizer.sleeper for descent in descents]
        self._shards = shards_of(self._model)
        self._snapshots = Snapshots() if learning.algo.keep_old_actor else None
        self._num_rollouts = 0  # learned from, over the whole run
        self._seconds: dict[str, float] = {}
        self._canary = Replayed()

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
        cfg, algo = self._learning.batch, self._learning.algo
        wanted = wanted_columns(algo, num_steps(groups, cfg))
        if not wanted:
            return tuple(groups)
        rows = scoring_rows(groups, self.layout, cfg, algo)
        # the old log-probs' pass says which experts it took, unless engines said so
        records = algo.use_routing_replay and not algo.use_rollout_routing_replay
        routes = Routes(records=records)
        found: dict[str, Any] = {}  # a column for each group
        if "old_logprobs" in wanted:
            with self._timed("log_probs"):
                found["old_logprobs"] = self._old_logprobs(groups, rows, routes)
                if records:
                    taken = routes.recorded(self._mesh)
                    groups = with_experts(groups, rows, taken, self._mesh, self._model.device)
        for column, model, span in (
            ("reference_logprobs", self._reference, "ref_log_probs"),
            ("teacher_logprobs", self._teacher, "teacher_log_probs"),
        ):
            if column in wanted:
                assert model is not None, f"{column} are wanted of a model that is not there"
                with self._timed(span):
                    found[column] = columns(groups, rows, self._scores(model, _unrouted(rows)))
        if "values" in wanted:
            assert self._critic is not None, "values without a critic"
            with self._timed("values"):
                found["values"] = columns(groups, rows, self._critic.values(rows))
        found = {
            name: whole_columns(column, self._mesh, self._model.device)
            for name, column in found.items()
        }
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
        self._canary.settle()
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
        own = sum(batch.num_tokens for batches in steps for batch in batches)
        (num_tokens,) = summed_numbers([own], self._mesh, self._model.device)
        seconds, self._seconds = self._seconds, {}
        seconds = longest(seconds, self._mesh, self._model.device)
        return StepStats(rows=tuple(rows), num_tokens=int(num_tokens), seconds=seconds)

    def weights(self, version: int) -> Weights:
        """The policy's weights under Hugging Face names, with the proofs that they arrived.

        Adapters are merged into them. See `publish.weights_of`.
        """
        if self._snapshots is not None:
            self._snapshots.take(version, self._model)
        return weights_of(self._model, version, self._canary)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The same tensors once more, without proofs; see `publish.named_of`."""
        return named_of(self._model)

    @property
    def num_movable_bytes(self) -> int:
        """Device memory that `sleep` gives back."""
        return sum(sleeper.num_bytes for sleeper in self._sleepers)

    @property
    def is_asleep(self) -> bool:
        return any(sleeper.is_asleep for sleeper in self._sleepers)

    def sleep(self) -> None:
        """Has the optimizers' state wait in host memory; checkpoints are written and read there.

        Weights stay where they are: engines may read them.
        """
        with self._timed("sleep"):
            for sleeper in self._sleepers:
                sleeper.sleep()
            self.trim()

    def wake(self) -> None:
        """Has the optimizers' state come back, on a GPU while the next passes are computed."""
        with self._timed("wake_up"):
            for sleeper in self._sleepers:
                sleeper.wake()

    def trim(self) -> None:
        """Gives back what is held of the device and not used."""
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def save(
        self,
        root: str | Path,
        iteration: int,
        extra: Mapping[str, Any],
        *,
        with_optimizer: bool = True,
    ) -> Path:
        """The folder that holds all of it: models, optimizers, schedules, `extra` of other rooms.

        It is written in one piece or not at all (`checkpoint.torch_dist`), in the background where
        that was asked for: then it is there after `finish_saves`. Adapters are also written in
        PEFT's form, to `lora/` beside it.
        """
        assert STATE not in extra, f"{STATE!r} in a checkpoint's extra is the trainer's own"
        tensors = self.pieces(with_optimizer=with_optimizer)
        state: dict[str, Any] = {**self._descent.state(), "num_rollouts": self._num_rollouts}
        if self._critic is not None:
            state["critic"] = self._critic.descent.state()
        write = torch_dist.save if self._saves is None else self._saves.save
        folder = write(root, iteration, tensors, {**extra, STATE: state})
        if self._adapters is not None and self._mesh.rank == 0:
            self._adapters.save(Path(root) / "lora" / folder.name)
        return folder

    def finish_saves(self) -> None:
        """Returns when nothing is being written any more; raises what went wrong with it."""
        if self._saves is not None:
            self._saves.wait()

    def save_hugging_face(self, folder: str | Path, origin: str | Path) -> None:
        """Writes the policy as a Hugging Face folder, config and tokenizer those of `origin`.

        Where processes hold parts of it, all call this; the first writes.
        """
        named = self.named()
        try:
            if self._mesh.rank == 0:
                save_hugging_face(named, folder, origin, force=True)
        finally:  # each step of the walk is a collective
            for _ in named:
                pass

    def load(self, root: str | Path, iteration: int | None = None) -> dict[str, Any]:
        """The other rooms' `extra`, after everything that `save` wrote is back in place.

        Raises CheckpointError when anything is missing or of another model; nothing has changed
        then.
        """
        extra = torch_dist.load(root, self.pieces(), iteration)
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
        """A digest of every tensor that a checkpoint holds, as this process has it."""
        pieces = as_pieces(self.pieces())
        return digest_all((name, piece.tensor) for name, piece in pieces.items())

    def pieces(self, *, with_optimizer: bool = True) -> Pieces:
        """What this process has of everything that a checkpoint holds, in place."""
        pieces = {name: one for part in self._weight_parts().values() for name, one in part.items()}
        if with_optimizer:
            pieces |= optimizer_pieces(self._descent.optimizer, self._shards)
            if self._critic is not None:
                pieces |= self._critic.optimizer_pieces()
        return pieces

    def _weight_parts(self) -> dict[str, Pieces]:
        """The tensors of every model that changes in a run, by what their names begin with."""
        parts: dict[str, Pieces] = {torch_dist.MODEL: model_pieces(self._model, torch_dist.MODEL)}
        if self._critic is not None:
            parts["critic.model."] = self._critic.model_pieces()
        if self._adapters is not None:
            parts["lora."] = self._adapters.tensors()
        if self._reference is not None and self._learning.algo.ref_update_interval is not None:
            parts[REFERENCE] = model_pieces(self._reference, REFERENCE)
        return parts

    def _old_logprobs(
        self, groups: Sequence[Group], rows: Sequence[ScoringRow], routes: Routes
    ) -> list[tuple[np.ndarray, ...]]:
        if self._snapshots is None:
            return columns(groups, rows, self._scores(self._model, rows, routes))
        by_version = {
            version: columns(groups, rows, self._scores(model, rows))
            for version, model in self._snapshots.authors(groups).items()
        }
        return by_author(groups, by_version)

    def _scores(
        self, model: Model, rows: Sequence[ScoringRow], routes: Routes | None = None
    ) -> list[np.ndarray]:
        """The log-probs of each row, on the host."""
        return model.scores([row.batch for row in rows], self._learning.scoring, routes)

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
        """The step's metrics on the device, after the gradients of all batches were summed.

        They are this data rank's, and the last stage's alone.
        """
        totals: dict[str, Tensor] = {}
        finish = loss_into(totals, self._learning, self._correction_scale(batches))
        routes = Routes(balance_coef=self._learning.algo.balance_coef)
        self._model.learn(batches, finish, self._learning.recompute, routes)
        if self._learning.algo.balance_coef:
            totals["load_balancing_loss"] = routes.balance_loss(self._model.parts[0])
        return totals

    def _correction_scale(self, batches: Sequence[Batch]) -> float:
        """What makes the correction weights of a whole step 1 on average, where that is asked."""
        if not self._learning.algo.tis_batch_normalize:
            return 1.0
        rows = []
        for batch in batches:
            trainer_T, engine_T = batch.old_logprobs_T, batch.engine_logprobs_T
            assert trainer_T is not None and engine_T is not None, "weights without log-probs"
            rows.append(Tokens(trainer_T, engine_T, batch.mask_T, batch.bounds_S))
        over_ranks = partial(summed_numbers, mesh=self._mesh, device=self._model.device)
        return normaliser(rows, self._learning.algo, over_ranks)

    def _refresh_reference(self) -> None:
        interval = self._learning.algo.ref_update_interval
        if self._reference is None or interval is None or self._num_rollouts % interval:
            return
        self._reference.copy_from(self._model)

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin_s
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


def model_of(decoder: Parts) -> Model:
    """The model that a decoder, or parts of one, make."""
    return Model([decoder] if isinstance(decoder, Decoder) else decoder)


def _unrouted(rows: Sequence[ScoringRow]) -> list[ScoringRow]:
    """The same rows for another model, whose routers choose themselves."""
    return [replace(row, batch=replace(row.batch, experts_TLk=None)) for row in rows]


def frozen_model(decoder: Parts | None) -> Model | None:
    """The same of a model that does not learn; None of none."""
    if decoder is None:
        return None
    model = model_of(decoder)
    for part in model.parts:
        part.requires_grad_(False)
    return model
