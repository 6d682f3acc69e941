"""What a checkpoint of a run holds, and how a run goes on from one."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from tandem.checkpoint.find import Found
from tandem.config import Config, to_dict
from tandem.contracts import Sampler, Trainer
from tandem.errors import CheckpointError
from tandem.loop_async import AHEAD, Ahead
from tandem.rollout import LEFTOVERS, decode, encode
from tandem.types import Rollout

log = logging.getLogger(__name__)

SAMPLER, SETTINGS, THREADS = "sampler", "settings", "threads"
BUFFER = "unfinished"
"""Keys of a checkpoint's `extra`, beside the trainer's own."""


class Saver:
    """Saves the trainer, the place in the data and the settings, once for each rollout."""

    def __init__(self, cfg: Config, trainer: Trainer, *, saved: int) -> None:
        """`saved` is the last rollout that the folder holds already, -1 when there is none."""
        self._cfg, self._origin = cfg.checkpoint, cfg.model.hf_checkpoint
        self._settings = to_dict(cfg)
        self._trainer = trainer
        self._saved = saved

    def save(self, rollout: int, sampler_state: Mapping[str, Any]) -> None:
        """Writes iteration `rollout`; nothing to do without --save or when it is there already."""
        if self._cfg.save is None or rollout <= self._saved:
            return
        place = dict(sampler_state)
        leftovers, ahead = place.pop(LEFTOVERS, ()), place.pop(AHEAD, None)
        extra: dict[str, Any] = {SAMPLER: place, SETTINGS: self._settings}
        extra[THREADS] = torch.get_num_threads()
        if leftovers:
            extra[BUFFER] = encode(leftovers)
        if ahead is not None:
            place[AHEAD] = {"step": ahead.step, "metrics": dict(ahead.metrics)}
            extra[AHEAD] = encode(ahead.groups)
        with_optimizer = not self._cfg.no_save_optim
        self._trainer.save(self._cfg.save, rollout, extra, with_optimizer=with_optimizer)
        self._saved = rollout
        if self._cfg.save_hf is not None:
            folder = self._cfg.save_hf.format(rollout_id=rollout)
            self._trainer.save_hugging_face(folder, self._origin)

    def finish(self) -> None:
        """Returns when what was saved in the background is on the disk."""
        self._trainer.finish_saves()


class Resumable(Trainer, Protocol):
    """A trainer that can also take the weights of a checkpoint and nothing else of it."""

    def load_weights(self, root: Any, iteration: int | None = None) -> Mapping[str, Any]:
        """The other rooms' `extra`; optimizer and schedule start afresh."""


def resume(found: Found, trainer: Resumable, sampler: Sampler, *, with_optimizer: bool) -> None:
    """Puts trainer and sampler where the checkpoint left them.

    Raises CheckpointError when it holds no run, DataError when the prompts are others now.
    """
    assert found.path is not None, "a run to go on with lies in a folder"
    assert isinstance(found.iteration, int), "a run to go on with has a number"
    load = trainer.load if with_optimizer else trainer.load_weights
    extra = load(found.path, found.iteration)
    _compare_threads(extra.get(THREADS))
    has_place = bool(extra.get(SAMPLER))
    if sampler.state() and not has_place:
        raise CheckpointError(
            f"{found.path} iteration {found.iteration} holds weights but no place in the data; "
            "pass --finetune to start a new run from its weights"
        )
    state = dict(extra.get(SAMPLER, {}))
    state[LEFTOVERS] = decode(extra[BUFFER]) if BUFFER in extra else ()
    if AHEAD in extra:
        told, groups = state.pop(AHEAD), decode(extra[AHEAD])
        if isinstance(sampler, Ahead):
            state[AHEAD] = Rollout(step=told["step"], groups=groups, metrics=told["metrics"])
        else:  # judged groups that wait go on as they are
            state[LEFTOVERS] = (*groups, *state[LEFTOVERS])
    sampler.restore(state)


def _compare_threads(before: int | None) -> None:
    now = torch.get_num_threads()
    if before is not None and before != now and not torch.cuda.is_available():
        log.warning(
            "this run was saved by a process of %d threads and goes on with %d: sums are split "
            "otherwise, so its bits will differ; set OMP_NUM_THREADS=%d to repeat them",
            before,
            now,
            before,
        )
