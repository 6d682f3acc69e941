"""The optimizer of one model with its schedule and its clock."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from tandem.config import OptimConfig
from tandem.errors import TandemError
from tandem.parallel import Mesh
from tandem.train.optimizer import AdamW
from tandem.train.schedule import Schedule
from tandem.train.shards import Spread
from tandem.train.together import from_last_stage, summed_metrics

ONE = Mesh()


class Descent:
    """Owns how one model's parameters move, and how far its run has come."""

    def __init__(
        self,
        named: Iterable[tuple[str, Parameter]],
        optim: OptimConfig,
        schedule: Schedule,
        step_size: int,
        *,
        spreads: Mapping[str, Spread] | None = None,
        mesh: Mesh = ONE,
        of: str = "",
    ) -> None:
        """`step_size` is the rollouts of a full optimizer step; `of` names the model in errors.

        `spreads` says how parameters lie on the mesh; by default all processes hold all of them.
        """
        named = list(named)
        if spreads is None:
            spreads = {name: Spread(mesh.data_context) for name, _ in named}
        self.optimizer = AdamW(named, optim, spreads, mesh.world)
        self._mesh = mesh
        self.schedule = schedule
        self.num_steps = 0  # taken, over the whole run
        self.consumed = 0  # rollouts learned from: the clock of the schedule
        self._optim = optim
        self._step_size = step_size
        self._of = of

    def step(self, totals: dict[str, Tensor]) -> dict[str, float]:
        """The step's metrics on the host, after the weights moved by what has been accumulated.

        `totals` are this data rank's; what comes back is the same on every process.

        Raises TandemError at a gradient that is not finite, before any weight has moved, unless
        `--no-check-for-nan-in-loss-and-grad` asks to skip such steps.
        """
        lr = self.schedule.lr(self.consumed)
        totals = {**summed_metrics(totals, self._mesh), "grad_norm": self.optimizer.step(lr)}
        row = from_last_stage(_to_host(totals), self._mesh)
        is_taken = bool(np.isfinite(row["grad_norm"]))
        if not is_taken and not self._optim.no_check_for_nan_in_loss_and_grad:
            raise TandemError(
                f"{self._of}optimizer step {self.num_steps}: the gradient norm is "
                f"{row['grad_norm']} and the loss {next(iter(row.values()))}; no weight was "
                "changed. Resume from the last checkpoint "
                "with a smaller --lr, look at this step's samples, or pass "
                "--no-check-for-nan-in-loss-and-grad to skip such steps"
            )
        row |= {"lr-pg_0": lr, "global_batch_size": self._step_size}
        row |= {"step": self.num_steps, "skipped": float(not is_taken)}
        if is_taken:
            self.num_steps += 1
            self.consumed += self._step_size
        return row

    def state(self) -> dict[str, int]:
        """Where the clock stands; the optimizer's tensors are apart."""
        return {"num_steps": self.num_steps, "consumed": self.consumed}

    def restore(self, state: Mapping[str, int]) -> None:
        """Sets the clock."""
        self.num_steps, self.consumed = state["num_steps"], state["consumed"]

    def start_afresh(self) -> None:
        """Takes the parameters as they are for the beginning of a run."""
        self.optimizer.adopt()
        self.optimizer.forget()
        self.num_steps = self.consumed = 0


def _to_host(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The scalars as floats, in one copy from the device."""
    values = torch.stack([value.double() for value in totals.values()]).tolist()
    return dict(zip(totals, values, strict=True))
