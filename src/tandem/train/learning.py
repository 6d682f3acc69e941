"""What the trainer learns by: its settings, the models beside the policy, the loss of a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from tandem.algo import NO_HOOKS, Hooks, hooked_loss, loss, wants_entropy
from tandem.config import AlgoConfig, BatchConfig, OptimConfig
from tandem.models.decoder import Decoder, Recompute
from tandem.parallel import Layout
from tandem.train.critic import Critic
from tandem.train.forward import Row, Scoring, scores_of
from tandem.train.lora import Adapters
from tandem.train.model import Finish
from tandem.train.schedule import Schedule


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

    @property
    def scoring(self) -> Scoring:
        """How log-probs are computed, without entropy."""
        return Scoring(temperature=self.temperature, chunk=self.batch.log_probs_chunk_size)


Parts = Decoder | Sequence[Decoder]
"""A decoder, or what one process holds of it: a part for each of its stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """The models that a trainer may need beside the policy; each None where it does not."""

    reference: Parts | None = None
    teacher: Parts | None = None
    critic: Critic | None = None
    adapters: Adapters | None = None


def loss_into(totals: dict[str, Tensor], learning: Learning, scale: float) -> Finish:
    """What makes a row's hidden states its loss; metrics are added to `totals`."""
    algo, hooks = learning.algo, learning.hooks
    how = replace(
        learning.scoring,
        wants_entropy=wants_entropy(algo),
        entropy_has_gradient=algo.entropy_coef != 0,
    )

    def finish(part: Decoder, row: Row, hidden_TD: Tensor) -> Tensor:
        if algo.loss_type == "custom_loss":
            value, metrics = hooked_loss(row.batch, row.whole(part.logits(hidden_TD)), hooks)
        else:
            logprobs_T, entropy_T = scores_of(part, row, hidden_TD, how)
            value, metrics = loss(row.batch, logprobs_T, entropy_T, algo, hooks=hooks, scale=scale)
        add_metrics(totals, metrics)
        return value

    return finish


def add_metrics(totals: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
    """Adds a row's metrics to those of its step."""
    for name, metric in metrics.items():
        totals[name] = totals[name] + metric if name in totals else metric
