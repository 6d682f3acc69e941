"""KL as a price on tokens, before any step is taken: what the reward and distillation subtract."""

import numpy as np

from tandem.algo.kl import kl_estimate
from tandem.config import AlgoConfig
from tandem.types import Group


def policy_logprobs(group: Group, place: int, cfg: AlgoConfig) -> np.ndarray:
    """Log-probs of a sample under the policy that counts as its author, `[T]`.

    The engine's with `--use-rollout-logprobs`, else the trainer's.
    """
    if cfg.use_rollout_logprobs:
        return group.samples[place].logprobs_T
    assert group.old_logprobs is not None, "KL in the reward needs the policy's log-probs"
    return group.old_logprobs[place]


def reward_kl(group: Group, place: int, cfg: AlgoConfig) -> np.ndarray:
    """KL of policy to reference for each token of a sample, float64 `[T]`; 0 without `kl_coef`.

    The estimate is `kl_loss_type`'s, without the ratio: the samples are the policy's own.
    """
    import torch

    if cfg.kl_coef == 0:
        return np.zeros(group.samples[place].num_tokens)
    assert group.reference_logprobs is not None, "KL in the reward needs a reference"
    policy_T = torch.from_numpy(policy_logprobs(group, place, cfg).astype(np.float64))
    reference_T = torch.from_numpy(group.reference_logprobs[place].astype(np.float64))
    kl_T = kl_estimate(policy_T, reference_T, cfg.kl_loss_type).numpy()
    return np.where(group.samples[place].sampled_T, kl_T, 0.0)
