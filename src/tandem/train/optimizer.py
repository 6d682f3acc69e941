"""AdamW with fp32 master weights and moments, one fused pass a step."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from tandem.config import OptimConfig
from tandem.parallel import ALONE, Axis
from tandem.parallel.collectives import sum_
from tandem.train.asleep import Sleeper
from tandem.train.shards import ONE_PROCESS, Rows, Spread, buckets_of, rows_of

MASTER = "optimizer.master."
FIRST_MOMENT = "optimizer.exp_avg."
SECOND_MOMENT = "optimizer.exp_avg_sq."
STEP = "optimizer.step"
NORM_EPSILON = 1e-6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class AdamW:
    """Owns master weights, moments and fp32 gradients of the parameters it is given.

    An fp32 parameter is its own master; for any other dtype a master copy is kept, gradients of
    single batches are summed in fp32 as they come, and the parameter is rewritten, in place, from
    the master after each step. In bf16 that is 2 + 4 + 8 bytes a parameter at rest and 4 more for
    the gradient, which is freed after each step.

    Processes that hold the same parameters (`Spread.over`) share out masters and moments: each has
    its rows of them (ZeRO-1, arXiv:1910.02054; Megatron's distributed optimizer). Gradients are
    summed over them once a step and every process gets all new weights. With
    `--optimizer-cpu-offload` masters and moments lie in host memory, where the update runs; else
    `sleeper` can have them wait there between steps.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Parameter]],
        cfg: OptimConfig,
        spreads: Mapping[str, Spread] | None = None,
        world: Axis = ALONE,
    ) -> None:
        """`spreads` says how parameters lie on the mesh; `world` is all processes that train."""
        self._cfg, self._world = cfg, world
        self._parameters = dict(named)
        self._spreads = {} if spreads is None else dict(spreads)
        self._buckets = buckets_of(self._parameters, self._spreads)
        self._sums: dict[str, Tensor] = {}  # fp32 gradients of parameters that have a master
        self._own = {name: self._rows(name, p) for name, p in self._parameters.items()}
        self._masters = {name: self._master(own) for name, own in self._own.items()}
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32:
                parameter.register_post_accumulate_grad_hook(self._summing(name))
        kept = {} if cfg.use_stateless_adam else self._masters
        self._first = {n: zeros_like(m, DTYPES[cfg.exp_avg_dtype]) for n, m in kept.items()}
        self._second = {n: zeros_like(m, DTYPES[cfg.exp_avg_sq_dtype]) for n, m in kept.items()}
        device = next(iter(self._masters.values())).device
        self._step = torch.zeros((), dtype=torch.float32, device=device)
        self.sleeper = Sleeper({} if cfg.optimizer_cpu_offload else self._state())
        # Megatron's rule: norms and biases are not decayed
        self._decayed = [name for name, master in self._masters.items() if master.dim() > 1]
        self._plain = [name for name, master in self._masters.items() if master.dim() <= 1]

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Moves the weights and drops the gradients; gives the gradient's norm, unclipped.

        The norm is a scalar on the device, of the gradient of the whole model, the same on every
        process: nothing waits for it here. A norm that is not finite leaves weights, moments and
        the count of steps as they were. Clipping to `clip_grad` scales by clip / (norm + 1e-6)
        (Megatron's rule) in the same pass that updates.
        """
        assert not self.sleeper.is_asleep, "a step of an optimizer that is asleep"
        self.sleeper.settle()
        gradients = self._reduced()
        norm = self._norm(gradients)
        is_bad = (~norm.isfinite()).float()
        scale = torch.ones_like(norm)
        if self._cfg.clip_grad > 0:
            scale = ((norm + NORM_EPSILON) / self._cfg.clip_grad).clamp(min=1.0)
        scale, is_bad = (x.to(self._step.device) for x in (scale, is_bad))
        if self._cfg.use_stateless_adam:
            self._step.zero_()
        self._step += 1
        for names, decay, own in self._at_home(self._parts(), gradients):
            self._update(names, own, lr, decay, scale, is_bad)
            if self._cfg.optimizer_cpu_offload:
                self._write_home(names)
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
        for key, tensor in self.tensors().items():
            if not key.startswith(MASTER):
                tensor.zero_()

    @torch.no_grad()
    def adopt(self) -> None:
        """Takes the parameters' present values as the weights to go on from."""
        for key, tensor in self.tensors().items():
            if key.startswith(MASTER):
                tensor.copy_(self._own[self.parameter_of(key)])

    def parameter_of(self, key: str) -> str:
        """The parameter that an entry of `tensors` but `STEP` belongs to."""
        return next(
            key.removeprefix(prefix)
            for prefix in (MASTER, SECOND_MOMENT, FIRST_MOMENT)
            if key.startswith(prefix)
        )

    def num_rows(self, name: str) -> int:
        """Rows of the parameter as this process holds it."""
        return self._parameters[name].shape[0]

    def own_rows(self, name: str) -> Rows:
        """Which rows of a parameter this process keeps the state of."""
        spread = self._spreads.get(name, ONE_PROCESS)
        return rows_of(self._parameters[name].shape[0], spread.over)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by name, in place: loading writes into these, also while they sleep.

        Of each tensor the rows that this process owns (`own_rows`). Masters that are parameters
        themselves are not among them.
        """
        return self._state() | self.sleeper.tensors() | {STEP: self._step}

    def _state(self) -> dict[str, Tensor]:
        """Masters that are not parameters themselves, and moments, by name."""
        named = {
            MASTER + name: master
            for name, master in self._masters.items()
            if master is not self._own[name]
        }
        named |= {FIRST_MOMENT + name: tensor for name, tensor in self._first.items()}
        return named | {SECOND_MOMENT + name: tensor for name, tensor in self._second.items()}

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

    def _rows(self, name: str, parameter: Parameter) -> Tensor:
        """The rows of a parameter whose state this process keeps, a view."""
        rows = self.own_rows(name)
        return parameter.detach()[rows.start : rows.stop]

    def _master(self, own: Tensor) -> Tensor:
        """The fp32 weights that steps move: the parameter's own rows where they can be."""
        if self._cfg.optimizer_cpu_offload and own.is_cuda:
            return torch.empty(own.shape, dtype=torch.float32, pin_memory=True).copy_(own)
        return own if own.dtype == torch.float32 else own.float()

    def _reduced(self) -> dict[str, Tensor]:
        """This process's rows of the fp32 gradients of the whole step."""
        gradients: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            gradient = self._sums.pop(name, parameter.grad)
            assert gradient is not None, f"no gradient reached {name}"
            parameter.grad = None
            gradients[name] = gradient
        own: dict[str, Tensor] = {}
        for bucket in self._buckets:
            own |= bucket.reduce(gradients)
        return own

    def _norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of the whole model's gradient, what several processes hold counted once."""
        if self._world.size == 1:
            return global_norm(gradients.values())
        counted = [
            gradient
            for name, gradient in gradients.items()
            if gradient.numel() and self._spreads[name].is_counted
        ]
        total = next(iter(gradients.values())).new_zeros((), dtype=torch.float64)
        if counted:
            total = torch.stack(torch._foreach_norm(counted)).double().square().sum()
        return sum_(total, self._world).sqrt().float()

    def _parts(self) -> Iterator[tuple[list[str], float]]:
        """What is updated together, and its decay: all, or one by one where that saves memory."""
        cfg = self._cfg
        is_low = {cfg.exp_avg_dtype, cfg.exp_avg_sq_dtype} != {"fp32"}
        is_one_by_one = cfg.use_stateless_adam or cfg.optimizer_cpu_offload or is_low
        for names, decay in ((self._decayed, cfg.weight_decay), (self._plain, 0.0)):
            names = [name for name in names if self._masters[name].numel()]
            for part in [[name] for name in names] if is_one_by_one else [names]:
                if part:
                    yield part, decay

    def _at_home(
        self, parts: Iterable[tuple[list[str], float]], gradients: dict[str, Tensor]
    ) -> Iterator[tuple[list[str], float, dict[str, Tensor]]]:
        """Each part with its gradients where the masters lie.

        A part's copies to the host run while the one before it is updated.
        """
        waiting: tuple[list[str], float, dict[str, Tensor], torch.cuda.Event] | None = None
        for names, decay in parts:
            own = {name: gradients.pop(name) for name in names}
            if not (self._cfg.optimizer_cpu_offload and own[names[0]].is_cuda):
                yield names, decay, own
                continue
            # copies that are not waited for go to pinned memory
            moved = {name: g.to("cpu", non_blocking=True) for name, g in own.items()}
            arrived = torch.cuda.Event()
            arrived.record()
            if waiting is not None:
                waiting[3].synchronize()
                yield waiting[:3]
            waiting = (names, decay, moved, arrived)
        if waiting is not None:
            waiting[3].synchronize()
            yield waiting[:3]

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
            # .float() of an fp32 moment is that moment
            first = [self._first[name].float() for name in names]
            second = [self._second[name].float() for name in names]
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
        if not self._cfg.use_stateless_adam:
            for name, new_first, new_second in zip(names, first, second, strict=True):
                for kept, new in ((self._first[name], new_first), (self._second[name], new_second)):
                    if kept is not new:
                        kept.copy_(new)

    def _write_home(self, names: Iterable[str]) -> None:
        """Queues the copies of masters in host memory back to the device."""
        for name in names:
            own, master = self._own[name], self._masters[name]
            if master is not own:
                own.copy_(master.to(own.device, non_blocking=True))

    def _write_back(self) -> None:
        """Puts the masters into the parameters, on every process that holds them."""
        copied = [name for name, own in self._own.items() if self._masters[name] is not own]
        if copied and not self._cfg.optimizer_cpu_offload:
            torch._foreach_copy_(
                [self._own[name] for name in copied], [self._masters[name] for name in copied]
            )
        for bucket in self._buckets:
            bucket.gather(self._own, self._parameters)


def zeros_like(master: Tensor, dtype: torch.dtype) -> Tensor:
    """A moment of a master, at its side."""
    return torch.zeros(
        master.shape, dtype=dtype, device=master.device, pin_memory=master.is_pinned()
    )


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm over all tensors together, a float32 scalar on their device."""
    norms = torch._foreach_norm(list(gradients))
    return torch.stack(norms).double().norm().float()
