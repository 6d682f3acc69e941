"""The critic of PPO: a decoder of its own with one number for each token."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tandem.algo import value_loss
from tandem.checkpoint.pieces import Pieces
from tandem.config import AlgoConfig
from tandem.models.decoder import Decoder, Recompute
from tandem.models.part import Shard
from tandem.packing import ScoringRow
from tandem.train.descent import Descent
from tandem.train.forward import token_values
from tandem.train.pieces import optimizer_pieces, piece_of
from tandem.train.shards import Spread
from tandem.train.together import spreads_of
from tandem.types import Batch

PREFIX = "critic."
"""What the names of its tensors in a checkpoint begin with."""


class ValueModel(nn.Module):
    """A decoder's body and a linear head `[1, D]`, which begins at 0: so do all values."""

    def __init__(self, policy: Decoder) -> None:
        """Starts from the weights that `policy` has now, and shares none of them."""
        super().__init__()
        weight_VD = policy.head_weight
        # a value model has no use for the head of a policy, tied or not
        self.body = Decoder(
            replace(policy.shape, tied=True), weight_VD.dtype, weight_VD.device, policy.part
        )
        named = dict(policy.named_parameters())
        with torch.no_grad():
            for name, parameter in self.body.named_parameters():
                parameter.copy_(named[name])
        self.head = nn.Linear(policy.shape.width, 1, dtype=torch.float32, device=weight_VD.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def shards(self) -> dict[str, Shard]:
        """What every parameter of the body is of the whole one, by name; the head is whole."""
        return {f"body.{name}": shard for name, shard in self.body.shards().items()}

    def spreads(self) -> dict[str, Spread]:
        """How every parameter lies on the mesh, by name."""
        mesh = self.body.part.mesh
        head = Spread(mesh.data_context, is_counted=mesh.tensor.rank == 0)
        spreads = {f"body.{name}": spread for name, spread in spreads_of([self.body]).items()}
        return spreads | {"head.weight": head, "head.bias": head}


class Critic:
    """Owns the value model and how it learns."""

    def __init__(self, model: ValueModel, descent: Descent, recompute: Recompute | None) -> None:
        self._model = model
        self.descent = descent
        self._recompute = recompute

    @torch.no_grad()
    def values(self, rows: Sequence[ScoringRow]) -> list[np.ndarray]:
        """The value before each target of each row, on the host."""
        scored = [token_values(self._model.body, self._model.head, row.batch)[1] for row in rows]
        return [values_T.cpu().numpy() for values_T in scored]

    def step(self, batches: Sequence[Batch], algo: AlgoConfig) -> dict[str, float]:
        """One optimizer step on the returns; its metrics, by their names behind `critic-`."""
        totals: dict[str, Tensor] = {}
        for batch in batches:
            moved, values_T = token_values(
                self._model.body, self._model.head, batch, self._recompute
            )
            value, metrics = value_loss(moved, values_T, algo)
            value.backward()
            for name, metric in metrics.items():
                totals[name] = totals[name] + metric if name in totals else metric
        row = self.descent.step(totals)
        kept = {name: row[name] for name in (*totals, "grad_norm", "skipped")}
        return {f"critic-{name}": number for name, number in kept.items()} | {
            "critic-lr": row["lr-pg_0"]
        }

    def model_pieces(self) -> Pieces:
        """The value model's parameters, in place, by their names in a checkpoint."""
        shards = self._model.shards()
        return {
            f"{PREFIX}model.{name}": piece_of(parameter.detach(), shards.get(name))
            for name, parameter in self._model.named_parameters()
        }

    def optimizer_pieces(self) -> Pieces:
        """The optimizer's state, in place, likewise."""
        return optimizer_pieces(self.descent.optimizer, self._model.shards(), PREFIX)
