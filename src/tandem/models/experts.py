"""A feed-forward block of experts: a router sends each token to a few of them.

Experts are divided over the `expert` axis, the columns of each over `expert_tensor`; a process
routes the rows of the stream that are its own, and sends them where their experts are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tandem.kernels.experts import (
    combine,
    dispatch,
    grouped_linear,
    permute,
    router_logits,
    sort_by_expert,
)
from tandem.kernels.swiglu import swiglu
from tandem.models.part import WHOLE, Part
from tandem.models.shape import Shape
from tandem.parallel.collectives import gather, sum_, sum_out
from tandem.parallel.exchange import exchange, exchange_counts


@dataclass(frozen=True, slots=True)
class Balance:
    """The loss that keeps experts equally busy, added to one pass over a packed row.

    Switch form: E / (k T^2) times the sum over experts of (choices that fell on it) x (sum of its
    probabilities), 1 when all are even; T counts the row's tokens. Source: Fedus et al., "Switch
    Transformers", 2021, as Megatron's `--moe-aux-loss-coeff` means it, for each packed row.
    """

    coef: float  # what the loss is multiplied by before it joins the others
    share: Tensor  # of this row in the loss of the step, a scalar
    is_real_T: Tensor  # bool, False at padding
    losses: list[Tensor]  # written: share x loss of each layer, as its backward pass comes by


@dataclass(frozen=True, slots=True)
class Routing:
    """What one forward pass says to its routers, and hears of them.

    L counts the layers with experts. Both arrays are about the rows that this process runs.
    """

    replayed_TLk: Tensor | None = None  # the experts to take; -1: the router chooses
    recorded_TLk: Tensor | None = None  # written: the experts that were taken
    balance: Balance | None = None


NO_ROUTING = Routing()


class Matrices(nn.Module):
    """Weights of one product, with an expert dimension or without."""

    def __init__(self, *sizes: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sizes, dtype=dtype, device="meta"))


class Experts(nn.Module):
    """E feed-forward blocks, of which each token takes the k that its router likes best.

    Router and shared expert are whole on every process, like norms.
    """

    def __init__(self, shape: Shape, layer: int, dtype: torch.dtype, part: Part = WHOLE) -> None:
        super().__init__()
        assert shape.mixture is not None, "a shape without experts has no mixture"
        self.mixture = mixture = shape.mixture
        self.place = mixture.layers.index(layer)  # among the layers with experts
        self.mesh, width = part.mesh, shape.width
        # tensor ranks that all have all rows, as an engine's have
        self.shares_rows = part.mesh.tensor.size > 1 and not part.splits_rows
        count = mixture.num_experts // self.mesh.expert.size
        ffn = mixture.ffn // self.mesh.expert_tensor.size
        self.router = Matrices(mixture.num_experts, width, dtype=dtype)
        self.gate_up = Matrices(count, 2 * ffn, width, dtype=dtype)
        self.down = Matrices(count, width, ffn, dtype=dtype)
        self.shared_gate_up = self.shared_down = self.shared_gate = None
        if mixture.shared_ffn:
            self.shared_gate_up = Matrices(2 * mixture.shared_ffn, width, dtype=dtype)
            self.shared_down = Matrices(width, mixture.shared_ffn, dtype=dtype)
        if mixture.has_shared_gate:
            self.shared_gate = Matrices(1, width, dtype=dtype)

    def forward(
        self, y_TD: Tensor, routing: Routing = NO_ROUTING, forgets_swiglu: bool = False
    ) -> Tensor:
        """What the experts make of each token, `[T, D]` in the dtype of `y_TD`.

        `forgets_swiglu` computes SwiGLU again in the backward pass.
        """
        experts_Tk, weights_Tk = self._chosen(y_TD, routing)
        is_divided = self.mesh.expert.size * self.mesh.expert_tensor.size > 1
        if is_divided and self.shares_rows:
            out_TD = self._own_share(y_TD, experts_Tk, weights_Tk)
        else:
            sorting = sort_by_expert(experts_Tk, self.mixture.num_experts)
            compute = self._computed_elsewhere if is_divided else self._computed
            rows_MD = compute(dispatch(y_TD, sorting), sorting.ends_E, forgets_swiglu)
            out_TD = combine(rows_MD, weights_Tk, sorting)
        return out_TD if self.shared_down is None else out_TD + self._shared(y_TD)

    def _chosen(self, y_TD: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
        """The experts of each token, int64 `[T, k]`, and their weights in fp32."""
        mixture = self.mixture
        probs_TE = router_logits(y_TD, self.router.weight).softmax(-1)
        experts_Tk = probs_TE.detach().topk(mixture.per_token, dim=-1).indices
        if routing.replayed_TLk is not None:
            replayed_Tk = routing.replayed_TLk[:, self.place].long()
            experts_Tk = torch.where(replayed_Tk >= 0, replayed_Tk, experts_Tk)
        if routing.recorded_TLk is not None:
            routing.recorded_TLk[:, self.place] = experts_Tk
        weights_Tk = probs_TE.gather(1, experts_Tk)
        if mixture.normalises:
            weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
        if routing.balance is not None and torch.is_grad_enabled():
            weights_Tk = self._balanced(weights_Tk, probs_TE, experts_Tk, routing.balance)
        return experts_Tk, weights_Tk

    def _balanced(
        self, weights_Tk: Tensor, probs_TE: Tensor, experts_Tk: Tensor, balance: Balance
    ) -> Tensor:
        """The weights themselves, whose backward pass also brings the balance loss.

        Processes that share the row have the counts of all of it and their own tokens' part of the
        loss: the parts and their gradients add up.
        """
        real_T = balance.is_real_T.to(probs_TE.dtype)
        counts_E = probs_TE.new_zeros(self.mixture.num_experts + 1)  # and of tokens
        counts_E[:-1].index_add_(
            0, experts_Tk.flatten(), real_T.repeat_interleave(self.mixture.per_token)
        )
        counts_E[-1] = real_T.sum()
        for axis in (self.mesh.tensor, self.mesh.context):
            sum_(counts_E, axis)
        scale = self.mixture.num_experts / self.mixture.per_token * balance.share
        loss = (real_T @ probs_TE * counts_E[:-1]).sum() * scale / counts_E[-1].clamp_min(1) ** 2
        return _WithLoss.apply(weights_Tk, loss, balance.coef, balance.losses)

    def _computed(self, rows_MD: Tensor, ends_E: Tensor, forgets_swiglu: bool) -> Tensor:
        """The rows of each expert here, through its block."""
        gate_up = grouped_linear(rows_MD, self.gate_up.weight, ends_E)
        if forgets_swiglu:
            return checkpoint(
                self._fed, gate_up, ends_E, use_reentrant=False, preserve_rng_state=False
            )
        return self._fed(gate_up, ends_E)

    def _fed(self, gate_up: Tensor, ends_E: Tensor) -> Tensor:
        return grouped_linear(swiglu(gate_up), self.down.weight, ends_E)

    def _computed_elsewhere(self, rows_MD: Tensor, ends_E: Tensor, forgets_swiglu: bool) -> Tensor:
        """The rows of all experts, each through its block where that is, in the order given.

        A rank takes the rows for its experts from all ranks of `expert`, then those that the other
        ranks of `expert_tensor` took, whose experts have other columns of the same matrices.
        """
        expert, columns = self.mesh.expert, self.mesh.expert_tensor
        counts_E = ends_E.long().diff(prepend=ends_E.new_zeros(1))
        sent_PE = counts_E.view(expert.size, -1)
        received_PE = exchange_counts(sent_PE, expert)
        counts_CPE = torch.stack(gather(received_PE, columns))
        # the host must know how much comes from where: the one wait of a layer
        sizes = torch.cat([sent_PE.sum(1), received_PE.sum(1), counts_CPE.sum((1, 2))]).tolist()
        sent, received = sizes[: expert.size], sizes[expert.size : 2 * expert.size]
        taken, own = sizes[2 * expert.size :], sum(received)
        order_M, ends_E = _by_expert(counts_CPE.flatten(0, 1), sum(taken))

        rows_MD = exchange(rows_MD, sent, received, expert)
        if columns.size > 1:
            copies_MD = rows_MD.repeat(columns.size, 1)
            rows_MD = exchange(copies_MD, [own] * columns.size, taken, columns)
        rows_MD = self._computed(permute(rows_MD, order_M), ends_E, forgets_swiglu)
        rows_MD = permute(rows_MD, order_M.argsort())
        if columns.size > 1:
            parts = exchange(rows_MD, taken, [own] * columns.size, columns)
            rows_MD = parts.view(columns.size, own, parts.shape[1]).float().sum(0).to(parts.dtype)
        return exchange(rows_MD, received, sent, expert)

    def _own_share(self, y_TD: Tensor, experts_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        """The sum over tensor ranks of what the experts of each make of rows that all have.

        For sampling: it moves no rows and waits for nothing. Gradients are not those of training.
        """
        mesh, count = self.mesh, len(self.down.weight)
        is_shared = mesh.expert.size * mesh.expert_tensor.size == mesh.tensor.size
        assert is_shared, "experts are divided over ranks that do not share their rows"
        # this rank's experts come first; what is behind their rows is nobody's here
        own_Tk = (experts_Tk - mesh.expert.rank * count) % self.mixture.num_experts
        sorting = sort_by_expert(own_Tk, self.mixture.num_experts)
        rows_MD = self._computed(dispatch(y_TD, sorting), sorting.ends_E[:count], False)
        is_own_M = torch.arange(len(rows_MD), device=rows_MD.device) < sorting.ends_E[count - 1]
        rows_MD = torch.where(is_own_M[:, None], rows_MD, 0)
        return sum_out(combine(rows_MD, weights_Tk, sorting), mesh.tensor)

    def _shared(self, y_TD: Tensor) -> Tensor:
        assert self.shared_gate_up is not None and self.shared_down is not None
        linear = nn.functional.linear
        out_TD = linear(swiglu(linear(y_TD, self.shared_gate_up.weight)), self.shared_down.weight)
        if self.shared_gate is None:
            return out_TD
        return linear(y_TD, self.shared_gate.weight).sigmoid() * out_TD


def _by_expert(counts_PE: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The order that puts rows of P senders, each sorted by expert, into that of experts, and
    where the rows of each expert then end (int32)."""
    num_senders, num_experts = counts_PE.shape
    experts_M = torch.arange(num_experts, device=counts_PE.device).repeat(num_senders)
    experts_M = experts_M.repeat_interleave(counts_PE.flatten(), output_size=num_rows)
    return experts_M.sort(stable=True).indices, counts_PE.sum(0).cumsum(0).int()


class _WithLoss(torch.autograd.Function):
    """Gives its first argument, and sends a gradient of its own to the second, once for each
    backward pass: a forward pass that is computed again adds nothing."""

    @staticmethod
    def forward(ctx, x, loss, coef, losses):
        ctx.save_for_backward(loss)
        ctx.coef, ctx.losses = coef, losses
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        (loss,) = ctx.saved_tensors
        ctx.losses.append(loss)
        return grad, torch.full_like(loss, ctx.coef), None, None
