"""AdamW with fp32 master weights and moments, one fused pass a step."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from tandem.config import OptimConfig

MASTER = "optimizer.master."
FIRST_MOMENT = "optimizer.exp_avg."
SECOND_MOMENT = "optimizer.exp_avg_sq."
STEP = "optimizer.step"
NORM_EPSILON = 1e-6


class AdamW:
    """Owns master weights, moments and fp32 gradients of the parameters it is given.

    An fp32 parameter is its own master; for any other dtype a master copy is kept, gradients of
    single batches are summed in fp32 as they come, and the parameter is rewritten, in place, from
    the master after each step. In bf16 that is 2 + 4 + 8 bytes a parameter at rest and 4 more for
    the gradient, which is freed after each step.
    """

    def __init__(self, named: Iterable[tuple[str, Parameter]], cfg: OptimConfig) -> None:
        self._cfg = cfg
        self._parameters = dict(named)
        self._sums: dict[str, Tensor] = {}  # fp32 gradients of parameters that have a master
        self._masters: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.dtype == torch.float32:
                self._masters[name] = parameter.detach()
            else:
                self._masters[name] = parameter.detach().float()
                parameter.register_post_accumulate_grad_hook(self._summing(name))
        kept = {} if cfg.use_stateless_adam else self._masters
        self._first = {name: torch.zeros_like(master) for name, master in kept.items()}
        self._second = {name: torch.zeros_like(master) for name, master in kept.items()}
        device = next(iter(self._masters.values())).device
        self._step = torch.zeros((), dtype=torch.float32, device=device)
        # Megatron's rule: norms and biases are not decayed
        self._decayed = [name for name, master in self._masters.items() if master.dim() > 1]
        self._plain = [name for name, master in self._masters.items() if master.dim() <= 1]

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Moves the weights and drops the gradients; gives the gradient's norm, unclipped.

        The norm is a scalar on the device: nothing waits for it here. A norm that is not finite
        leaves weights, moments and the count of steps as they were. Clipping to `clip_grad` scales
        by clip / (norm + 1e-6) (Megatron's rule) in the same pass that updates.
        """
        gradients = self._gradients()
        norm = global_norm(gradients.values())
        is_bad = (~norm.isfinite()).float()
        scale = torch.ones_like(norm)
        if self._cfg.clip_grad > 0:
            scale = ((norm + NORM_EPSILON) / self._cfg.clip_grad).clamp(min=1.0)
        if self._cfg.use_stateless_adam:
            self._step.zero_()
        self._step += 1
        for names, decay in ((self._decayed, self._cfg.weight_decay), (self._plain, 0.0)):
            # without a state, moments live for one tensor at a time
            parts = [[name] for name in names] if self._cfg.use_stateless_adam else [names]
            for part in filter(None, parts):
                self._update(part, gradients, lr, decay, scale, is_bad)
        self._step -= is_bad
        self._write_back()
        self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Forgets what was accumulated and frees its memory."""
        self._sums.clear()
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def forget(self) -> None:
        """Zeroes moments and the count of steps, as in a fresh optimizer."""
        torch._foreach_zero_([*self._first.values(), *self._second.values(), self._step])

    @torch.no_grad()
    def adopt(self) -> None:
        """Takes the parameters' present values as the weights to go on from."""
        for name, parameter in self._parameters.items():
            if self._masters[name].data_ptr() != parameter.data_ptr():
                self._masters[name].copy_(parameter)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by name, in place: loading writes into these.

        Masters that are parameters themselves are not among them.
        """
        named = {
            MASTER + name: master
            for name, master in self._masters.items()
            if master.dtype != self._parameters[name].dtype
        }
        named |= {FIRST_MOMENT + name: tensor for name, tensor in self._first.items()}
        named |= {SECOND_MOMENT + name: tensor for name, tensor in self._second.items()}
        return named | {STEP: self._step}

    def _summing(self, name: str):
        """A hook that moves a gradient, as soon as it is whole, into the fp32 sum."""

        def move(parameter: Tensor) -> None:
            assert parameter.grad is not None, f"the hook of {name} ran without a gradient"
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = parameter.grad.float()
            parameter.grad = None

        return move

    def _gradients(self) -> dict[str, Tensor]:
        gradients = {
            name: self._sums.get(name, parameter.grad)
            for name, parameter in self._parameters.items()
        }
        absent = [name for name, gradient in gradients.items() if gradient is None]
        assert not absent, f"no gradient reached {', '.join(absent[:3])}"
        return {name: gradient for name, gradient in gradients.items() if gradient is not None}

    def _update(
        self,
        names: list[str],
        gradients: Mapping[str, Tensor],
        lr: float,
        weight_decay: float,
        scale: Tensor,
        is_bad: Tensor,
    ) -> None:
        """AdamW (arXiv:1711.05101) on the masters, gradients divided by `scale` on the way."""
        masters = [self._masters[name] for name in names]
        if self._cfg.use_stateless_adam:
            first, second = ([torch.zeros_like(master) for master in masters] for _ in range(2))
        else:
            first = [self._first[name] for name in names]
            second = [self._second[name] for name in names]
        torch._fused_adamw_(
            masters,
            [gradients[name] for name in names],
            first,
            second,
            [],
            [self._step] * len(names),
            lr=lr,
            beta1=self._cfg.adam_beta1,
            beta2=self._cfg.adam_beta2,
            weight_decay=weight_decay,
            eps=self._cfg.adam_eps,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
            found_inf=is_bad,
        )

    def _write_back(self) -> None:
        copied = [n for n, p in self._parameters.items() if p.dtype != torch.float32]
        if copied:
            torch._foreach_copy_(
                [self._parameters[name].detach() for name in copied],
                [self._masters[name] for name in copied],
            )


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm over all tensors together, a float32 scalar on their device."""
    norms = torch._foreach_norm(list(gradients))
    return torch.stack(norms).double().norm().float()
