"""The loss of a batch, and what an algorithm needs to know before its first step."""

from typing import TYPE_CHECKING

from tandem.algo.kl import kl_estimate
from tandem.algo.policy_loss import policy_loss
from tandem.config import AlgoConfig
from tandem.errors import ConfigError
from tandem.types import Batch

if TYPE_CHECKING:
    import torch

OLD_LOGPROBS = "old_logprobs"
REFERENCE_LOGPROBS = "reference_logprobs"


def wanted_columns(cfg: AlgoConfig, num_steps: int) -> frozenset[str]:
    """The columns of `Group` that the trainer must fill before it steps `num_steps` times.

    Old log-probs cost a forward pass, so they are taken from the training forward itself, where the
    ratio is exactly 1, when there is one step only and nothing reads them before it.
    """
    if cfg.loss_type == "sft_loss":
        return frozenset()
    wanted = set()
    is_reused = num_steps == 1 and cfg.loss_type == "policy_loss" and cfg.kl_coef == 0
    if not cfg.use_rollout_logprobs and not is_reused:
        wanted.add(OLD_LOGPROBS)
    if wants_reference(cfg):
        wanted.add(REFERENCE_LOGPROBS)
    return frozenset(wanted)


def wants_reference(cfg: AlgoConfig) -> bool:
    """Whether a reference model is needed: for a KL term in the loss or in the reward.

    A coefficient of 0 with `--use-kl-loss` still reports `kl_loss`.
    """
    return cfg.loss_type != "sft_loss" and cfg.has_reference


def wants_entropy(cfg: AlgoConfig) -> bool:
    """Whether the training forward computes the entropy of every trained token."""
    return cfg.loss_type != "sft_loss" and (cfg.entropy_coef != 0 or cfg.use_rollout_entropy)


def loss(
    batch: Batch, logprobs_T: "torch.Tensor", entropy_T: "torch.Tensor | None", cfg: AlgoConfig
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The loss of a batch (a float64 scalar with gradient) and its metrics.

    Both are sums of `weight_T * x_T`, so they add over batches and ranks to what the chosen
    reduction says of the whole step. Metrics are detached float64 scalars with the dialect's names.
    """
    if cfg.loss_type == "policy_loss":
        return _policy(batch, logprobs_T, entropy_T, cfg)
    if cfg.loss_type == "sft_loss":
        value = weighted(batch, -logprobs_T)
        return value, {"loss": value.detach()}
    raise ConfigError(f"--loss-type {cfg.loss_type} is not there yet; use policy_loss or sft_loss")


def weighted(batch: Batch, x_T: "torch.Tensor") -> "torch.Tensor":
    """The sum of `weight_T * x_T` in float64, so that it does not depend on the order of tokens."""
    return (batch.weight_T.double() * x_T.double()).sum()


def _policy(
    batch: Batch, logprobs_T: "torch.Tensor", entropy_T: "torch.Tensor | None", cfg: AlgoConfig
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """Policy term - entropy_coef * entropy + kl_loss_coef * KL, each under the same weights."""
    assert batch.advantages_T is not None, "a policy loss on a batch without advantages"
    current_T = logprobs_T.detach()
    trainer_T = current_T if batch.old_logprobs_T is None else batch.old_logprobs_T
    old_T = _engine(batch) if cfg.use_rollout_logprobs else trainer_T
    policy = policy_loss(
        logprobs_T,
        old_T,
        batch.advantages_T,
        low=cfg.eps_clip,
        high=cfg.eps_clip if cfg.eps_clip_high is None else cfg.eps_clip_high,
        dual=cfg.eps_clip_c,
    )
    total = pg_loss = weighted(batch, policy.loss_T)
    terms = {
        "pg_loss": pg_loss,
        "pg_clipfrac": weighted(batch, policy.clipped_T),
        "ppo_kl": weighted(batch, old_T - current_T),
        "ppo_kl_abs": weighted(batch, (old_T - current_T).abs()),
        "ois": weighted(batch, policy.ratio_T.detach()),
    }
    if batch.engine_logprobs_T is not None:
        gap_T = (trainer_T - batch.engine_logprobs_T).abs()
        terms["train_rollout_logprob_abs_diff"] = weighted(batch, gap_T)
    if entropy_T is not None:
        terms["entropy_loss"] = weighted(batch, entropy_T)
        if cfg.entropy_coef != 0:
            total = total - cfg.entropy_coef * terms["entropy_loss"]
    if cfg.use_kl_loss:
        assert batch.reference_logprobs_T is not None, "a KL loss on a batch without a reference"
        ratio_T = policy.ratio_T if cfg.use_unbiased_kl else None
        kl_T = kl_estimate(logprobs_T, batch.reference_logprobs_T, cfg.kl_loss_type, ratio_T)
        terms["kl_loss"] = weighted(batch, kl_T)
        if cfg.kl_loss_coef != 0:
            total = total + cfg.kl_loss_coef * terms["kl_loss"]
    return total, {name: term.detach() for name, term in {"loss": total, **terms}.items()}


def _engine(batch: Batch) -> "torch.Tensor":
    if batch.engine_logprobs_T is None:
        raise ConfigError(
            "--use-rollout-logprobs needs the engine's log-probs and these samples carry none; "
            "leave the flag out, so that the trainer computes the old log-probs"
        )
    return batch.engine_logprobs_T
