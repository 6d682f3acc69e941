"""What stands in for the half of a run that is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tandem.checkpoint import torch_dist
from tandem.checkpoint.names import to_hugging_face
from tandem.config import Config
from tandem.contracts import Sync
from tandem.models.decoder import Decoder
from tandem.parallel import Layout
from tandem.types import Batch, Evaluation, Group, StepStats, Weights


class IdleTrainer:
    """Learns nothing and holds no optimizer; implements `contracts.Trainer`."""

    def __init__(self, decoder: Decoder | None, layout: Layout) -> None:
        """`decoder` takes the weights of a checkpoint; None where the engines read them."""
        self._decoder = decoder
        self.layout = layout

    def annotate(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """No groups: nothing is learned from any."""
        return ()

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """The report of no optimizer step."""
        return StepStats(rows=(), num_tokens=0)

    def weights(self, version: int) -> Weights:
        """The decoder as it is, which an engine of this process samples with anyway."""
        if self._decoder is None:
            return Weights(version=version, named=(), is_shared=True)
        parameters = ((name, p.detach()) for name, p in self._decoder.named_parameters())
        named = to_hugging_face(self._decoder.shape, parameters)
        return Weights(version=version, named=named, is_shared=True)

    def save(
        self, root: Any, iteration: int, extra: Mapping[str, Any], *, with_optimizer: bool = True
    ) -> None:
        """Saves nothing: nothing was learned."""

    def finish_saves(self) -> None:
        """Nothing is being written."""

    def save_hugging_face(self, folder: Any, origin: Any) -> None:
        """Writes nothing: nothing was learned."""

    def load(self, root: Any, iteration: int | None = None) -> Mapping[str, Any]:
        """The `extra` of a checkpoint of which the policy alone is taken."""
        if self._decoder is None:
            which = torch_dist.latest(root) if iteration is None else iteration
            return torch_dist.read_extra(torch_dist.complete_folder(root, which))
        named = {
            torch_dist.MODEL + name: parameter.detach()
            for name, parameter in self._decoder.named_parameters()
        }
        return torch_dist.load(root, named, iteration, prefix=torch_dist.MODEL)

    load_weights = load


class FirstOnly:
    """Publishes the first weights and no others: they do not change."""

    def __init__(self, sync: Sync) -> None:
        self._sync: Sync | None = sync

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """The numbers of the first update, and none after it."""
        sync, self._sync = self._sync, None
        return {} if sync is None else sync.publish(weights)


class NoEvaluator:
    """The evaluator of a run without an engine, whose held-out sets were left out."""

    def evaluate(self) -> Evaluation:
        raise AssertionError("nothing can be evaluated without an engine")


def without_evaluation(cfg: Config) -> Config:
    """The configuration without held-out sets, with a note where there were some."""
    if not cfg.eval.eval_sets:
        return cfg
    note = "held-out sets are left out: this run starts no engine (--debug-train-only)"
    return replace(cfg, eval=replace(cfg.eval, eval_sets=()), notes=(*cfg.notes, note))
