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
    OldFlag(
        "--custom-model-provider-path",
        "one",
        Refused(
            "it makes a Megatron model, and none runs here; the model is that of --hf-checkpoint"
        ),
    ),
    *rows(
        Refused(
            "it is given Megatron's model, optimizer or process groups, and none runs here; "
            "--custom-advantage-function-path, --custom-loss-function-path and "
            "--rollout-data-postprocess-path reach into training"
        ),
        takes="one",
        flags="--custom-megatron-init-path --custom-megatron-before-log-prob-hook-path "
        "--custom-megatron-before-train-step-hook-path",
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
