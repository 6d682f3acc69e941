"""What cannot be done while sampling goes on beside training, and what should not."""

from collections.abc import Iterator

from tandem.config.config import Config


def overlapping(cfg: Config) -> Iterator[str]:
    """A sentence for every setting that cannot work with how sampling and training overlap."""
    sync, rollout, debug = cfg.sync, cfg.rollout, cfg.debug
    if sync.asynchronous == "off":
        for flag, is_set in (
            ("--update-weights-interval", sync.update_weights_interval != 1),
            ("--max-staleness", sync.max_staleness is not None),
        ):
            if is_set:
                yield f"{flag} is for asynchronous training; leave it out or start train_async.py"
        return
    if cfg.cluster.colocate:
        yield (
            "--colocate and asynchronous training exclude each other: who trains and who samples "
            "would share a device that both use at once; leave --colocate out, or start train.py"
        )
    if debug.debug_train_only or debug.debug_rollout_only:
        yield "half a run cannot be asynchronous; start train.py for it"
    least = sync.update_weights_interval - 1
    if sync.max_staleness is not None and sync.max_staleness < least:
        yield (
            f"--max-staleness {sync.max_staleness} can never be kept with "
            f"--update-weights-interval {sync.update_weights_interval}; set at least {least}"
        )
    if cfg.algo.keep_old_actor and (sync.max_staleness or 0) > sync.update_weights_interval:
        yield (
            f"--keep-old-actor keeps two versions, and --max-staleness {sync.max_staleness} lets "
            f"tokens be older; set --max-staleness {sync.update_weights_interval}, or take the "
            "engine's log-probs (--use-rollout-logprobs, or --use-tis)"
        )
    if sync.asynchronous != "full":
        return
    for flag, is_set in (
        ("--rollout-function-path", rollout.rollout_function_path is not None),
        ("--partial-rollout", rollout.partial_rollout),
        ("--mask-offpolicy-in-partial-rollout", rollout.mask_offpolicy_in_partial_rollout),
        ("--loss-type sft_loss", cfg.algo.loss_type == "sft_loss"),
    ):
        if is_set:
            yield (
                f"--asynchronous full samples without end, so there is no place for {flag}; "
                "leave it out, or set --asynchronous one-step"
            )


def uncorrected(cfg: Config) -> str | None:
    """The warning of a run that trains stale samples as if they were fresh; None for others."""
    algo, limit = cfg.algo, cfg.sync.max_staleness or 0
    is_corrected = (
        algo.use_tis
        or algo.use_rs
        or algo.use_opsm
        or algo.use_rollout_logprobs
        or algo.keep_old_actor
        or algo.loss_type != "policy_loss"
    )
    if cfg.sync.asynchronous == "off" or not limit or is_corrected:
        return None
    return (
        f"samples may be {limit} rollouts old when they are trained, and nothing corrects for it: "
        "old log-probs are those of the policy that learns, to which a stale sample looks fresh; "
        "set --use-tis, --use-rollout-logprobs, --keep-old-actor, --use-rs or --use-opsm (page of "
        "asynchronous training), or --max-staleness 0"
    )
