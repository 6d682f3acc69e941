"""Runs that check themselves and stop at the first thing that does not hold (`--ci-*`)."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tandem.config import AlgoConfig, DebugConfig
from tandem.contracts import Trainer
from tandem.errors import TandemError
from tandem.train import broken_invariants
from tandem.types import Batch, StepStats

GRAD_NORM_TOLERANCE = 0.01
"""Relative and absolute, of a gradient norm against one that was saved."""

ZERO_KL = 1e-6
"""Largest KL to the reference at the first step of a run that starts at its reference."""

GRAD_NORMS = {"actor": "grad_norm", "critic": "critic-grad_norm"}
"""The metric of each role."""


class CheckedTrainer:
    """Another trainer whose reports must keep what is promised; implements `contracts.Trainer`."""

    def __init__(
        self, trainer: Trainer, debug: DebugConfig, algo: AlgoConfig, precision: str, *, first: int
    ) -> None:
        """`precision` is fp32 or bf16, `first` the rollout that is learned from first."""
        self._trainer, self._debug, self._algo = trainer, debug, algo
        self._precision, self._next = precision, first
        self.annotate, self.weights = trainer.annotate, trainer.weights
        self.save, self.load = trainer.save, trainer.load
        self.finish_saves, self.save_hugging_face = trainer.finish_saves, trainer.save_hugging_face

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """The other trainer's report; raises TandemError for what does not hold in it."""
        stats = self._trainer.step_on(steps)
        rollout, self._next = self._next, self._next + 1
        faults = list(self._faults(stats, rollout)) if self._debug.ci_test else []
        for step, row in enumerate(stats.rows):
            faults += self._grad_norm_faults(row, rollout, step)
        if faults:
            raise TandemError(f"self-test of rollout {rollout}: " + "; ".join(faults))
        return stats

    def _faults(self, stats: StepStats, rollout: int) -> list[str]:
        debug = self._debug
        faults: list[str] = []
        if not debug.ci_disable_kl_checker:
            faults += broken_invariants(stats, self._algo, self._precision)
            kl = stats.rows[0].get("kl_loss") if stats.rows and rollout == 0 else None
            if kl is not None and not abs(kl) <= ZERO_KL:
                faults.append(f"KL to the reference is {kl:.2g} before anything was learned")
        bound = debug.ci_train_rollout_logprob_abs_diff_threshold
        for row in stats.rows:
            apart = row.get("train_rollout_logprob_abs_diff")
            if apart is not None and not apart <= bound:
                faults.append(
                    f"log-probs of trainer and engine are {apart:.2g} apart on average; "
                    f"--ci-train-rollout-logprob-abs-diff-threshold is {bound:g}"
                )
        return faults

    def _grad_norm_faults(self, row: Mapping[str, float], rollout: int, step: int) -> list[str]:
        """Writes the norms of a step, or compares them with those that were written."""
        faults = []
        for role, metric in GRAD_NORMS.items():
            if metric not in row:
                continue
            words = {"role": role, "rollout_id": rollout, "step_id": step}
            norm = row[metric]
            if self._debug.ci_save_grad_norm is not None:
                path = Path(self._debug.ci_save_grad_norm.format(**words))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(norm))
            if self._debug.ci_load_grad_norm is not None:
                path = Path(self._debug.ci_load_grad_norm.format(**words))
                wanted = json.loads(path.read_text()) if path.is_file() else math.nan
                tolerance = GRAD_NORM_TOLERANCE
                if not math.isclose(norm, wanted, rel_tol=tolerance, abs_tol=tolerance):
                    faults.append(f"the {role}'s gradient norm is {norm:.6g}; {path} has {wanted}")
        return faults


def checked(
    trainer: Any, debug: DebugConfig, algo: AlgoConfig, precision: str, *, first: int
) -> Trainer:
    """The trainer, with its reports checked where a `--ci-*` flag asks for it."""
    is_asked = debug.ci_test or debug.ci_save_grad_norm or debug.ci_load_grad_norm
    if not is_asked or debug.debug_rollout_only:
        return trainer
    return CheckedTrainer(trainer, debug, algo, precision, first=first)
