"""slime's flags that are no fields here."""

from tandem.config.legacy.fates import NoEffect, OldFlag, Refused, rows

FLAGS: tuple[OldFlag, ...] = (
    OldFlag(
        "--train-backend",
        "one",
        NoEffect(
            "there is one trainer, and it takes Megatron's flags",
            only=("megatron",),
            otherwise="there is one trainer, and it takes Megatron's flags; leave this out",
        ),
    ),
    OldFlag(
        "--recompute-loss-function",
        "nothing",
        NoEffect("the log-prob head always works in chunks and computes them again in backward"),
    ),
    OldFlag(
        "--http-proxy",
        "one",
        NoEffect("engines are reached directly (slime does not read it either)"),
    ),
    OldFlag(
        "--use-distributed-post",
        "nothing",
        NoEffect("requests to the embedded engine do not travel over HTTP"),
    ),
    *rows(
        Refused(
            "this belongs to a plug-in of slime's examples; bring your own rollout with "
            "--rollout-function-path"
        ),
        takes="one",
        flags="--rollout-buffer-url --fetch-trajectory-retry-times --min-batch-collection-ratio "
        "--rollout-task-type",
    ),
)
