"""The loss of a batch, and what an algorithm needs to know before its first step."""

from typing import TYPE_CHECKING

from tandem.algo.hooks import NO_HOOKS, Hooks, hooked_correction, hooked_reduction
from tandem.algo.kl import kl_estimate
from tandem.algo.mismatch import Tokens, correction, wants_correction
from tandem.algo.policy_loss import (
    PolicyLoss,
    policy_loss,
    ratio_to,
    sequence_policy_loss,
    trusted_sequences,
    weighted_likelihood_loss,
)
from tandem.config import AlgoConfig
from tandem.errors import ConfigError
from tandem.types import Batch

if TYPE_CHECKING:
    import torch

OLD_LOGPROBS = "old_logprobs"
REFERENCE_LOGPROBS = "reference_logprobs"
TEACHER_LOGPROBS = "teacher_logprobs"
VALUES = "values"


def wanted_columns(cfg: AlgoConfig, num_steps: int) -> frozenset[str]:
    """The columns of `Group` that the trainer must fill before it steps `num_steps` times.

    Old log-probs cost a forward pass, so they are taken from the training forward itself, where the
    ratio is exactly 1, when there is one step only and nothing reads them before it.
    """
    if cfg.loss_type == "sft_loss":
        return frozenset()
    wanted = set()
    is_read_before = bool(
        cfg.kl_coef != 0
        or cfg.use_opd
        or cfg.keep_old_actor
        or cfg.tis_batch_normalize
        or cfg.custom_advantage_function_path
    )
    is_reused = num_steps == 1 and cfg.loss_type == "policy_loss" and not is_read_before
    if not cfg.use_rollout_logprobs and not is_reused:
        wanted.add(OLD_LOGPROBS)
    if wants_reference(cfg):
        wanted.add(REFERENCE_LOGPROBS)
    if wants_teacher(cfg):
        wanted.add(TEACHER_LOGPROBS)
    if cfg.has_critic:
        wanted.add(VALUES)
    return frozenset(wanted)


def wants_reference(cfg: AlgoConfig) -> bool:
    """Whether a reference model is needed: for a KL term in the loss or in the reward.

    A coefficient of 0 with `--use-kl-loss` still reports `kl_loss`.
    """
    return cfg.loss_type != "sft_loss" and cfg.has_reference


def wants_teacher(cfg: AlgoConfig) -> bool:
    """Whether a teacher's checkpoint is needed; a server's log-probs come with the reward."""
    return cfg.loss_type != "sft_loss" and cfg.use_opd and cfg.opd_type == "megatron"


def wants_entropy(cfg: AlgoConfig) -> bool:
    """Whether the training forward computes the entropy of every trained token."""
    return cfg.loss_type == "policy_loss" and (cfg.entropy_coef != 0 or cfg.use_rollout_entropy)


def loss(
    batch: Batch,
    logprobs_T: "torch.Tensor",
    entropy_T: "torch.Tensor | None",
    cfg: AlgoConfig,
    *,
    hooks: Hooks = NO_HOOKS,
    scale: float = 1.0,
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The loss of a batch (a float64 scalar with gradient) and its metrics.

    Both are sums of `weight_T * x_T`, so they add over batches and ranks to what the chosen
    reduction says of the whole step. Metrics are detached float64 scalars with the dialect's names.
    `scale` multiplies correction weights (`mismatch.normaliser` of the step).
    """
    if cfg.loss_type == "policy_loss":
        return _policy(batch, logprobs_T, entropy_T, cfg, hooks, scale)
    if cfg.loss_type == "sft_loss":
        value = weighted(batch, -logprobs_T)
        return value, {"loss": value.detach()}
    raise ConfigError(f"--loss-type {cfg.loss_type} takes logits: use hooks.hooked_loss")


def weighted(batch: Batch, x_T: "torch.Tensor") -> "torch.Tensor":
    """The sum of `weight_T * x_T` in float64, so that it does not depend on the order of tokens."""
    return (batch.weight_T.double() * x_T.double()).sum()


def value_loss(
    batch: Batch, values_T: "torch.Tensor", cfg: AlgoConfig
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The critic's loss (a float64 scalar with gradient) and its metrics, as `loss` gives them.

    max((clip(v) - R)^2, (v - R)^2) with clip(v) within `value_clip` of the value before the first
    step (PPO's usual value clip; no 1/2).
    """
    import torch

    assert batch.values_T is not None and batch.returns_T is not None, "a critic without returns"
    change_T = values_T - batch.values_T
    clipped_T = batch.values_T + change_T.clamp(-cfg.value_clip, cfg.value_clip)
    worst_T = torch.maximum(
        (clipped_T - batch.returns_T).square(), (values_T - batch.returns_T).square()
    )
    value = weighted(batch, worst_T)
    return value, {
        "value_loss": value.detach(),
        "value_clipfrac": weighted(batch, change_T.detach().abs() > cfg.value_clip),
        "values": weighted(batch, values_T.detach()),
        "returns": weighted(batch, batch.returns_T),
    }


def _policy(
    batch: Batch,
    logprobs_T: "torch.Tensor",
    entropy_T: "torch.Tensor | None",
    cfg: AlgoConfig,
    hooks: Hooks,
    scale: float,
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """Policy term - entropy_coef * entropy + kl_loss_coef * KL, each under the same weights."""
    current_T = logprobs_T.detach()
    trainer_T = current_T if batch.old_logprobs_T is None else batch.old_logprobs_T
    old_T = _engine(batch, "--use-rollout-logprobs") if cfg.use_rollout_logprobs else trainer_T
    policy = _objective(batch, logprobs_T, old_T, cfg)
    loss_T, terms = _masked(batch, policy.loss_T, current_T, old_T, cfg)
    loss_T, found = _corrected(batch, loss_T, trainer_T, cfg, hooks, scale)
    if hooks.reducer is None:
        total = weighted(batch, loss_T)
    else:
        total = hooked_reduction(batch, loss_T, hooks, per_token=cfg.calculate_per_token_loss)
    terms = {
        "pg_loss": total,
        "pg_clipfrac": weighted(batch, policy.clipped_T),
        "ppo_kl": weighted(batch, old_T - current_T),
        "ppo_kl_abs": weighted(batch, (old_T - current_T).abs()),
        "ois": weighted(batch, policy.ratio_T.detach()),
        **terms,
        **found,
    }
    if batch.engine_logprobs_T is not None:
        gap_T = (trainer_T - batch.engine_logprobs_T).abs()
        terms["train_rollout_logprob_abs_diff"] = weighted(batch, gap_T)
    if cfg.use_opd and batch.teacher_logprobs_T is not None:
        terms["opd_reverse_kl"] = weighted(batch, old_T - batch.teacher_logprobs_T)
    if entropy_T is not None:
        terms["entropy_loss"] = weighted(batch, entropy_T)
        if cfg.entropy_coef != 0:
            total = total - cfg.entropy_coef * terms["entropy_loss"]
    if cfg.has_reference:
        terms |= _reference_terms(batch, logprobs_T, old_T, cfg)
        if cfg.use_kl_loss and cfg.kl_loss_coef != 0:
            total = total + cfg.kl_loss_coef * terms["kl_loss"]
    return total, {name: term.detach() for name, term in {"loss": total, **terms}.items()}


def _objective(
    batch: Batch, logprobs_T: "torch.Tensor", old_T: "torch.Tensor", cfg: AlgoConfig
) -> PolicyLoss:
    """What the chosen algorithm says of each token."""
    assert batch.advantages_T is not None, "a policy loss on a batch without advantages"
    low = cfg.eps_clip
    high = low if cfg.eps_clip_high is None else cfg.eps_clip_high
    if cfg.advantage_estimator == "cispo":
        return weighted_likelihood_loss(logprobs_T, old_T, batch.advantages_T, low=low, high=high)
    if cfg.advantage_estimator == "gspo":
        return sequence_policy_loss(
            logprobs_T,
            old_T,
            batch.advantages_T,
            batch.mask_T,
            batch.bounds_S,
            low=low,
            high=high,
            dual=cfg.eps_clip_c,
        )
    return policy_loss(
        logprobs_T, old_T, batch.advantages_T, low=low, high=high, dual=cfg.eps_clip_c
    )


def _masked(
    batch: Batch,
    loss_T: "torch.Tensor",
    current_T: "torch.Tensor",
    old_T: "torch.Tensor",
    cfg: AlgoConfig,
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The losses without those of sequences that are too far off policy, and how many these are."""
    if not cfg.use_opsm:
        return loss_T, {}
    assert batch.advantages_T is not None, "a policy loss on a batch without advantages"
    is_trusted_T = trusted_sequences(
        current_T, old_T, batch.advantages_T, batch.mask_T, batch.bounds_S, cfg.opsm_delta
    )
    return loss_T * is_trusted_T, {"opsm_clipfrac": weighted(batch, ~is_trusted_T)}


def _corrected(
    batch: Batch,
    loss_T: "torch.Tensor",
    trainer_T: "torch.Tensor",
    cfg: AlgoConfig,
    hooks: Hooks,
    scale: float,
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The losses weighed for the engine not being the trainer, and what was found.

    Dropped tokens stay in the denominator (dialect 3.6).
    """
    if not wants_correction(cfg):
        return loss_T, {}
    engine_T = _engine(batch, "a correction of the trainer-engine mismatch")
    tokens = Tokens(trainer_T, engine_T, batch.mask_T, batch.bounds_S)
    if hooks.tis is not None:
        changed_T, found = hooked_correction(batch, tokens, loss_T, hooks)
    else:
        changed_T, found = loss_T, correction(tokens, cfg, scale)
    metrics = {name: weighted(batch, column_T) for name, column_T in found.metrics.items()}
    if not (cfg.use_tis or cfg.use_rs):
        return loss_T, metrics
    return changed_T * found.weight_T * found.is_kept_T, metrics


def _reference_terms(
    batch: Batch, logprobs_T: "torch.Tensor", old_T: "torch.Tensor", cfg: AlgoConfig
) -> "dict[str, torch.Tensor]":
    """KL to the reference: of the samples as they came, and of the policy as it is now."""
    import torch

    assert batch.reference_logprobs_T is not None, "a KL term on a batch without a reference"
    terms = {}
    if cfg.kl_coef != 0:
        kl_T = kl_estimate(old_T, batch.reference_logprobs_T, cfg.kl_loss_type)
        terms["kl"] = weighted(batch, kl_T)
    if cfg.use_kl_loss:
        with torch.set_grad_enabled(cfg.kl_loss_coef != 0):
            ratio_T = ratio_to(logprobs_T, old_T) if cfg.use_unbiased_kl else None
            kl_T = kl_estimate(logprobs_T, batch.reference_logprobs_T, cfg.kl_loss_type, ratio_T)
        terms["kl_loss"] = weighted(batch, kl_T)
    return terms


def _engine(batch: Batch, wanted_by: str) -> "torch.Tensor":
    if batch.engine_logprobs_T is None:
        raise ConfigError(
            f"{wanted_by} needs the engine's log-probs and these samples carry none; "
            "leave the flag out, so that the trainer computes the old log-probs"
        )
    return batch.engine_logprobs_T
