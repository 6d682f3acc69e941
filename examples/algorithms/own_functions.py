"""An algorithm of your own, in functions that a launch names by their path.

    PYTHONPATH=examples/algorithms python train.py ... \\
        --custom-advantage-function-path own_functions.best_of_the_rest \\
        --custom-pg-loss-reducer-function-path own_functions.constant_length

Arguments are the dialect's. Each function is loaded and its signature checked before anything is
sampled. `docs/algorithms.md` lists them all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tandem.algo.dialect import response_logprobs

LONGEST = 16.0


def best_of_the_rest(args: Any, rollout_data: dict[str, Any]) -> None:
    """Advantages: a sample's reward less the best one among the other samples of its prompt."""
    rewards = rollout_data["raw_reward"]
    group = args.n_samples_per_prompt
    found = []
    for place, (reward, length) in enumerate(
        zip(rewards, rollout_data["response_lengths"], strict=True)
    ):
        first = place - place % group
        rest = [
            r for other, r in enumerate(rewards[first : first + group], first) if other != place
        ]
        found.append(torch.full((length,), reward - max(rest, default=reward)))
    rollout_data["advantages"] = rollout_data["returns"] = found


def constant_length(
    total_lengths: Sequence[int],
    response_lengths: Sequence[int],
    loss_masks: Sequence[Tensor],
    calculate_per_token_loss: bool,
) -> Callable[[Tensor], Tensor]:
    """Dr. GRPO's reducer: a sum over tokens divided by one length for all samples."""
    mask = torch.cat(list(loss_masks))
    return lambda per_token: (per_token * mask).sum() / LONGEST


def likelihood_of_the_good(
    args: Any,
    batch: dict[str, Any],
    logits: Tensor,
    sum_of_sample_mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """A whole loss from logits: learn what was better than average by heart, forget the rest."""
    logprobs = torch.cat(response_logprobs(batch, logits, args.rollout_temperature))
    is_good = torch.cat(batch["advantages"]) > 0
    value = sum_of_sample_mean(-logprobs * is_good)
    return value, {"share_learned": sum_of_sample_mean(is_good.float())}


def square_root_weights(
    args: Any,
    *,
    pg_loss: Tensor,
    train_log_probs: Sequence[Tensor],
    rollout_log_probs: Sequence[Tensor],
    loss_masks: Sequence[Tensor],
    **kwargs: Any,
) -> tuple[Tensor, Sequence[Tensor], dict[str, Tensor]]:
    """A correction that trusts the ratio of trainer to engine by half."""
    pairs = zip(train_log_probs, rollout_log_probs, strict=True)
    weight = torch.cat([((trainer - engine) / 2).exp() for trainer, engine in pairs])
    return pg_loss * weight, loss_masks, {"square_root_weight": weight}
