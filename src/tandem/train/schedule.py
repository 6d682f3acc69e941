"""The learning rate as a function of the rollouts learned from."""

import math
from dataclasses import dataclass

from tandem.config import OptimConfig
from tandem.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Warm-up, decay and floor. Both lengths count rollouts (attempts), as the dialect does."""

    style: str
    peak: float
    floor: float
    first: float  # where warm-up begins
    warmup: int
    decay: int  # from the start of the run, warm-up included

    def lr(self, consumed: int) -> float:
        """The learning rate of the step that follows `consumed` rollouts.

        Megatron's rule: linear warm-up from `first`, so the very first step of a warm-up that
        begins at 0 moves nothing; then constant, linear or cosine down to `floor`.
        """
        if consumed < self.warmup:
            return self.first + (self.peak - self.first) * consumed / self.warmup
        if self.style == "constant":
            return self.peak
        if consumed >= self.decay:
            return self.floor
        share = (consumed - self.warmup) / (self.decay - self.warmup)
        left = 1 - share if self.style == "linear" else (1 + math.cos(math.pi * share)) / 2
        return self.floor + (self.peak - self.floor) * left


def schedule_of(cfg: OptimConfig, *, step_size: int, num_rollouts: int) -> Schedule:
    """The schedule of a run of `num_rollouts` attempts in steps of `step_size`.

    Lengths come from `lr_decay_iters` (the whole run when unset) and `lr_warmup_fraction` or
    `lr_warmup_iters`, all in optimizer steps. Raises ConfigError for a warm-up that outlasts the
    decay, and for both ways to set it at once.
    """
    num_steps = num_rollouts // step_size if cfg.lr_decay_iters is None else cfg.lr_decay_iters
    decay = num_steps * step_size
    if cfg.lr_warmup_fraction is None:
        warmup = cfg.lr_warmup_iters * step_size
    elif cfg.lr_warmup_iters:
        raise ConfigError(
            f"--lr-warmup-fraction {cfg.lr_warmup_fraction} and --lr-warmup-iters "
            f"{cfg.lr_warmup_iters} both set the warm-up; keep one of them"
        )
    else:
        warmup = round(cfg.lr_warmup_fraction * decay)
    if cfg.lr_decay_style != "constant" and warmup and warmup >= decay:
        raise ConfigError(
            f"the warm-up of {warmup} rollouts does not end before the decay at {decay} does; "
            "lower --lr-warmup-iters or --lr-warmup-fraction, or raise --lr-decay-iters"
        )
    return Schedule(
        style=cfg.lr_decay_style,
        peak=cfg.lr,
        floor=cfg.min_lr,
        first=cfg.lr_warmup_init,
        warmup=warmup,
        decay=decay,
    )
