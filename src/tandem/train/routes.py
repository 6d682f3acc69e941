"""What a pass over packed rows says to the routers of a mixture of experts, and hears of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tandem.models.decoder import Decoder
from tandem.models.experts import NO_ROUTING, Balance, Routing
from tandem.packing import ScoringRow
from tandem.parallel import Mesh
from tandem.parallel.collectives import gather, sum_
from tandem.train.context import in_row_order
from tandem.train.forward import Row
from tandem.types import Group


class Routes:
    """Of one pass: replays what batches carry, records experts, keeps experts equally busy."""

    def __init__(self, *, records: bool = False, balance_coef: float = 0.0) -> None:
        self._records, self._coef = records, balance_coef
        self._losses: list[Tensor] = []  # of each layer and row, as backward passes come by
        self._taken: dict[int, Tensor] = {}  # by row: `[T, L, k]`, this process's tokens

    def of(self, place: int, part: Decoder, row: Row) -> Routing:
        """What the routers of this part are told about the row at this place."""
        mixture = part.shape.mixture
        if mixture is None:
            return NO_ROUTING
        replayed_TLk, recorded_TLk, balance = None, None, None
        if row.batch.experts_TLk is not None:
            replayed_TLk = _own(row.batch.experts_TLk, part, row)
        if self._records:
            if place not in self._taken:
                sizes = (len(mixture.layers), mixture.per_token)
                num_tokens = len(_own(row.batch.tokens_T, part, row))
                self._taken[place] = torch.full(
                    (num_tokens, *sizes), -1, dtype=torch.int16, device=part.device
                )
            recorded_TLk = self._taken[place]
        if self._coef:
            places_T = torch.arange(len(row.batch.tokens_T), device=part.device)
            balance = Balance(
                coef=self._coef,
                share=row.batch.weight_T.sum(),
                is_real_T=_own(places_T < row.batch.num_tokens, part, row),
                losses=self._losses,
            )
        return Routing(replayed_TLk, recorded_TLk, balance)

    def balance_loss(self, part: Decoder) -> Tensor:
        """What has come of the balance loss, 1 when all experts are equally busy.

        The mean over layers of the sum over this data rank's rows, each with its share of the loss.
        """
        mixture = part.shape.mixture
        assert mixture is not None, "a balance loss without experts"
        total = torch.zeros((), device=part.device)
        total += sum(self._losses, torch.zeros((), device=part.device))
        mesh = part.part.mesh
        for axis in (mesh.tensor, mesh.context, mesh.pipeline):
            sum_(total, axis)
        return total / len(mixture.layers)

    def recorded(self, mesh: Mesh) -> list[np.ndarray]:
        """The experts of every row, int16 `[T, L, k]`, on the host of every process."""
        found = []
        for place in sorted(self._taken):
            # 0 is unknown until the end, and whole bytes are summed: each has one owner
            own_TLk = self._taken[place] + 1
            own_TLk = torch.cat(gather(own_TLk.view(torch.uint8), mesh.tensor))
            row_TLk = torch.cat(gather(own_TLk, mesh.context))
            if mesh.context.size > 1:
                row_TLk = in_row_order(row_TLk, mesh.context)
            whole_TLk = sum_(row_TLk, mesh.pipeline).view(torch.int16) - 1
            found.append(whole_TLk.cpu().numpy())
        return found


def with_experts(
    groups: Sequence[Group],
    rows: Sequence[ScoringRow],
    found: Sequence[np.ndarray],
    mesh: Mesh,
    device: torch.device,
) -> tuple[Group, ...]:
    """The groups with what `found` says of each row: the experts that its tokens took.

    Tokens that were in no row on any data rank have -1.
    """
    flat = [sample for group in groups for sample in group.samples]
    sizes = found[0].shape[1:]
    experts = [np.full((sample.num_tokens, *sizes), -1, np.int16) for sample in flat]
    for row, row_TLk in zip(rows, found, strict=True):
        bounds = row.batch.bounds_S.tolist()
        for place, start, end in zip(row.samples, bounds, bounds[1:], strict=False):
            experts[place] = row_TLk[start:end]
    if mesh.data.size > 1:
        # as in `Routes.recorded`
        owned = torch.from_numpy(np.concatenate(experts) + np.int16(1)).to(device)
        whole = sum_(owned.view(torch.uint8), mesh.data).view(torch.int16).cpu().numpy() - 1
        experts = np.split(whole, np.cumsum([len(array_TLk) for array_TLk in experts])[:-1])
    parts = iter(experts)
    return tuple(
        replace(
            group,
            samples=tuple(replace(sample, experts_TLk=next(parts)) for sample in group.samples),
        )
        for group in groups
    )


def _own(column_T: Tensor, part: Decoder, row: Row) -> Tensor:
    """This process's entries of a column of the whole row."""
    own_T = row.own(column_T)
    if not part.part.splits_rows:
        return own_T
    tensor = part.part.mesh.tensor
    return own_T.chunk(tensor.size)[tensor.rank]
