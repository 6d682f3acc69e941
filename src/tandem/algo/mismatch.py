"""Corrections for samples whose author is not quite the policy that learns from them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tandem.algo.policy_loss import (
    LOG_RATIO_BOUND,
    masked_means,
    ratio_to,
    sequence_sums,
    to_tokens,
)
from tandem.config import AlgoConfig

if TYPE_CHECKING:
    import torch


class Tokens(NamedTuple):
    """The tokens of a packed row as a correction sees them."""

    trainer_T: "torch.Tensor"  # log-probs by the trainer before its first step: proximal policy
    engine_T: "torch.Tensor"  # by the engine: behaviour policy
    mask_T: "torch.Tensor"
    bounds_S: "torch.Tensor"


class Correction(NamedTuple):
    """What becomes of each token's loss."""

    weight_T: "torch.Tensor"  # multiplies it
    is_kept_T: "torch.Tensor"  # bool: rejected tokens have no loss; they stay in the denominator
    metrics: "dict[str, torch.Tensor]"  # `[T]` each, finite everywhere


def wants_correction(cfg: AlgoConfig) -> bool:
    """Whether the loss looks at the ratio of trainer to engine at all."""
    return cfg.use_tis or cfg.use_rs or cfg.get_mismatch_metrics


def correction(tokens: Tokens, cfg: AlgoConfig, scale: float = 1.0) -> Correction:
    """The chosen correction. `scale` is `1 / mean weight`, where batch normalisation is asked."""
    return CORRECTIONS[cfg.tis_function](tokens, cfg, scale)


def truncated(tokens: Tokens, cfg: AlgoConfig, scale: float = 1.0) -> Correction:
    """Weights clamp(p_trainer / p_engine, tis_clip_low, tis_clip).

    Truncated importance sampling (Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training", 2025). On a clipped objective around the trainer's log-probs this is
    decoupled PPO (arXiv:2110.00641; AReaL, arXiv:2505.24298): behaviour policy the engine's,
    proximal policy the trainer's.
    """
    ratio_T = ratio_to(tokens.trainer_T, tokens.engine_T)
    weight_T = ratio_T.clamp(cfg.tis_clip_low, cfg.tis_clip)
    metrics = {
        "tis": ratio_T,
        "tis_clipfrac": weight_T != ratio_T,
        "tis_abs": (ratio_T - 1).abs(),
    }
    return Correction(weight_T * scale, tokens.mask_T > 0, metrics)


def icepop(tokens: Tokens, cfg: AlgoConfig, scale: float = 1.0) -> Correction:
    """Weights p_trainer / p_engine within [tis_clip_low, tis_clip], and 0 outside.

    IcePop (Ling team, "Small leak can sink a great ship", 2025).
    """
    ratio_T = ratio_to(tokens.trainer_T, tokens.engine_T)
    is_inside_T = (ratio_T >= cfg.tis_clip_low) & (ratio_T <= cfg.tis_clip)
    metrics = {"tis": ratio_T, "tis_clipfrac": ~is_inside_T, "tis_abs": (ratio_T - 1).abs()}
    return Correction(ratio_T * is_inside_T * scale, tokens.mask_T > 0, metrics)


def mis(tokens: Tokens, cfg: AlgoConfig, scale: float = 1.0) -> Correction:
    """Importance weights and rejection at the level of tokens, sequences or their mean.

    Masked importance sampling (Liu et al., "When speed kills stability", 2025; dialect 3.6):
    w = exp of the log-ratio of the token, summed over the sequence, or averaged over it
    (`tis_level`); then `tis_mode`: truncate to the upper bound, clip to both, or mask, which
    rejects what is outside and keeps the other weights. `use_rs` rejects by a level and bounds of
    its own; one token whose ratio is below `rs_veto_threshold` rejects its whole sequence.
    """
    low, high = _bounds(cfg)
    weight_T = _ratio_at(tokens, cfg.tis_level)
    is_low_T, is_high_T = weight_T < low, weight_T > high
    is_kept_T = tokens.mask_T > 0
    metrics: dict[str, torch.Tensor] = _described(tokens, weight_T)
    bounded_T = weight_T
    if cfg.tis_mode == "truncate":
        bounded_T = weight_T.clamp(max=high)
        metrics["mis_truncate_fraction"] = is_high_T
    else:
        metrics |= {
            f"mis_{cfg.tis_mode}_fraction_low": is_low_T,
            f"mis_{cfg.tis_mode}_fraction_high": is_high_T,
        }
        if cfg.tis_mode == "clip":
            bounded_T = weight_T.clamp(low, high)
        else:
            is_kept_T = is_kept_T & ~is_low_T & ~is_high_T
    if cfg.use_rs:
        is_kept_T = is_kept_T & _accepted(tokens, cfg, metrics)
    metrics["mis_rejected_fraction"] = ~is_kept_T
    if not cfg.use_tis:
        bounded_T = weight_T.new_ones(()).expand_as(weight_T)
    return Correction(bounded_T * scale, is_kept_T, metrics)


CORRECTIONS = {"tis": truncated, "icepop": icepop, "mis": mis}


def normaliser(
    rows: "list[Tokens]",
    cfg: AlgoConfig,
    over_ranks: Callable[[Sequence[float]], Sequence[float]] = tuple,
) -> float:
    """1 / mean weight of the trained tokens of all rows of a step; 1 where it is not asked for.

    `over_ranks` sums numbers over those who have other rows of the step.
    """
    if not cfg.tis_batch_normalize:
        return 1.0
    found = [correction(tokens, cfg) for tokens in rows]
    total = sum(
        float((each.weight_T.double() * tokens.mask_T).sum())
        for each, tokens in zip(found, rows, strict=True)
    )
    count = sum(float(tokens.mask_T.double().sum()) for tokens in rows)
    total, count = over_ranks([total, count])
    return count / total if total > 0 else 1.0


def _bounds(cfg: AlgoConfig) -> tuple[float, float]:
    low = cfg.tis_lower_bound
    return 1 / cfg.tis_upper_bound if low is None else low, cfg.tis_upper_bound


def _ratio_at(tokens: Tokens, level: str) -> "torch.Tensor":
    """p_trainer / p_engine at the level, `[T]`; 1 at tokens that are not trained."""
    log_ratio_T = (tokens.trainer_T - tokens.engine_T).where(tokens.mask_T > 0, 0.0)
    if level == "token":
        return ratio_to(log_ratio_T, log_ratio_T.new_zeros(()))
    if level == "sequence":
        whole_S = sequence_sums(log_ratio_T, tokens.bounds_S)
    else:
        whole_S = masked_means(log_ratio_T, tokens.mask_T, tokens.bounds_S)
    ratio_S = whole_S.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    return to_tokens(ratio_S, tokens.bounds_S, len(log_ratio_T)).to(log_ratio_T.dtype)


def _accepted(
    tokens: Tokens, cfg: AlgoConfig, metrics: "dict[str, torch.Tensor]"
) -> "torch.Tensor":
    """Whether rejection sampling keeps each token, bool `[T]`; says so in `metrics`."""
    tis_low, tis_high = _bounds(cfg)
    low = tis_low if cfg.rs_lower_bound is None else cfg.rs_lower_bound
    high = tis_high if cfg.rs_upper_bound is None else cfg.rs_upper_bound
    ratio_T = _ratio_at(tokens, cfg.rs_level or cfg.tis_level)
    metrics |= {"mis_rs_fraction_low": ratio_T < low, "mis_rs_fraction_high": ratio_T > high}
    is_accepted_T = (ratio_T >= low) & (ratio_T <= high)
    if cfg.rs_veto_threshold is None:
        return is_accepted_T
    is_awful_T = _ratio_at(tokens, "token") < cfg.rs_veto_threshold
    num_awful_S = sequence_sums(is_awful_T, tokens.bounds_S)
    is_vetoed_T = to_tokens(num_awful_S > 0, tokens.bounds_S, len(ratio_T))
    metrics["mis_catastrophic_token_fraction"] = is_awful_T
    metrics["mis_catastrophic_seq_fraction"] = is_vetoed_T
    return is_accepted_T & ~is_vetoed_T


def _described(tokens: Tokens, weight_T: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """How far trainer and engine are apart."""
    import torch

    bounds_S, mask_T = tokens.bounds_S, tokens.mask_T
    log_ratio_T = (tokens.trainer_T - tokens.engine_T).where(mask_T > 0, 0.0)
    ratio_T = ratio_to(log_ratio_T, log_ratio_T.new_zeros(()))

    def of_sequence(reduction: str, outside: float) -> torch.Tensor:
        found_S = torch.segment_reduce(
            weight_T.where(mask_T > 0, outside), reduction, offsets=bounds_S.long()
        )
        # a sequence without a trained token has no extreme
        return to_tokens(found_S, bounds_S, len(weight_T)).where(mask_T > 0, 1.0)

    def perplexity(logprobs_T: torch.Tensor) -> torch.Tensor:
        mean_S = masked_means(logprobs_T, mask_T, bounds_S)
        return to_tokens((-mean_S).exp(), bounds_S, len(logprobs_T))

    return {
        "mis_ratio_mean": weight_T,
        "mis_ratio_min": of_sequence("min", float("inf")),
        "mis_ratio_max": of_sequence("max", float("-inf")),
        "mis_kl": -log_ratio_T,
        "mis_k3_kl": ratio_T - 1 - log_ratio_T,
        "mis_training_ppl": perplexity(tokens.trainer_T),
        "mis_rollout_ppl": perplexity(tokens.engine_T),
    }
