"""What must hold at the first optimizer step of a rollout."""

from tandem.config import AlgoConfig
from tandem.types import StepStats

RATIO_BOUND = {"fp32": 1e-4, "bf16": 2e-2}
"""Mean |log ratio| that precision alone explains, where old log-probs come from the trainer."""


def broken_invariants(stats: StepStats, algo: AlgoConfig, dtype: str) -> tuple[str, ...]:
    """One sentence for each first-step invariant that does not hold; empty when all is well.

    Before its first step of a rollout the policy is the one that gave the old log-probs, so the
    ratio is 1 and the KL to it 0, up to the precision `dtype` (fp32 or bf16). With the engine's
    log-probs as the old ones, or those of an earlier policy (`--keep-old-actor`), that is not so,
    and nothing is checked; nor while only the critic learns.
    """
    is_its_own_past = not (algo.use_rollout_logprobs or algo.keep_old_actor)
    if not stats.rows or algo.loss_type != "policy_loss" or not is_its_own_past:
        return ()
    drift = stats.rows[0].get("ppo_kl_abs")
    if drift is None:
        return ()
    bound = RATIO_BOUND[dtype]
    if drift <= bound:  # a NaN fails this too
        return ()
    return (
        f"at the first step of this rollout the policy differs from its own old log-probs by "
        f"{drift:.2g} nats a token on average; {dtype} explains {bound:g}. The forward pass is not "
        "repeatable, or weights changed between the two: do not trust this run's gradients",
    )
