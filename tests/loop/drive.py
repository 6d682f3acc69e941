"""Runs a launch while writing down what it sampled; can kill itself at a chosen moment.

    python tests/loop/drive.py JOURNAL MOMENT FLAGS...

MOMENT is never, rollout:N, train:N or save:N. Every rollout adds a line to JOURNAL.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tandem.config import load_config
from tandem.loop import train
from tandem.runtime.local import build
from tandem.runtime.overlap import event_loop


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Witness:
    """A sampler that writes down a digest of what it gave; dies in the middle when told to."""

    def __init__(self, inner: Any, journal: Path, dies_at: int | None) -> None:
        self._inner, self._journal, self._dies_at = inner, journal, dies_at
        self.state, self.restore = inner.state, inner.restore

    def collect(self, step: int) -> Any:
        if step == self._dies_at:  # ahead of the loop it is the next rollout that is under way
            stage = getattr(self._inner, "_sampler", self._inner)
            stage._progress = lambda done, total: die() if done == total // 2 else None
        rollout = self._inner.collect(step)
        digest = hashlib.sha256()
        for group in rollout.groups:
            for sample in group.samples:
                for array in (sample.tokens_T, sample.logprobs_T, sample.version_T):
                    digest.update(array.tobytes())
                digest.update(repr(sample.reward).encode())
        with self._journal.open("a") as lines:
            lines.write(json.dumps({"step": step, "digest": digest.hexdigest()}) + "\n")
        return rollout


class Mortal:
    """A trainer that dies between the two optimizer steps of a rollout."""

    def __init__(self, inner: Any, dies_at: int) -> None:
        self._inner, self._rollouts_left = inner, dies_at
        self.annotate, self.weights, self.layout = inner.annotate, inner.weights, inner.layout

    def step_on(self, steps: Sequence[Any]) -> Any:
        if self._rollouts_left == 0:
            assert len(steps) == 2
            self._inner.step_on(steps[:1])
            die()
        self._rollouts_left -= 1
        return self._inner.step_on(steps)


def dying_save(save: Any, root: Path, dies_at: int) -> Any:
    """A save that dies as soon as its unfinished folder has a file in it."""

    def watch() -> None:
        while not any(root.glob(".*iter*/*")):
            pass
        die()

    def wrapped(step: int, state: Any) -> None:
        if step == dies_at:
            threading.Thread(target=watch, daemon=True).start()
        save(step, state)

    return wrapped


def drive(journal: Path, moment: str, argv: Sequence[str]) -> dict[str, int]:
    """The digest of every trained tensor at the end."""
    what, _, when = moment.partition(":")
    with ExitStack() as stack:
        cfg = load_config(argv)
        events = event_loop(cfg)
        stack.callback(events.close)
        stages, cfg = build(cfg, events, stack)
        trainer = stages.trainer
        dies_at = int(when or 0) if what == "rollout" else None
        stages = replace(stages, sampler=Witness(stages.sampler, journal, dies_at))
        if what == "train":
            stages = replace(stages, trainer=Mortal(trainer, int(when)))
        if what == "save":
            root = Path(str(cfg.checkpoint.save))
            stages = replace(stages, save=dying_save(stages.save, root, int(when)))
        train(cfg, stages)
        return trainer.state_digest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
