"""Flags of SGLang and its router, kept verbatim for the engine that takes them."""

PREFIXES = {"--sglang-": "sglang", "--router-": "router"}

OURS = {
    "model-path": "the model comes from --hf-checkpoint",
    "model": "the model comes from --hf-checkpoint",
    "config": "every flag of a server is given as --sglang-...",
    "trust-remote-code": "code from a checkpoint is not run",
    "random-seed": "seeds follow from --rollout-seed",
    "enable-memory-saver": "it follows from --offload-rollout",
    "tp-size": "it follows from --rollout-num-gpus-per-engine",
    "tensor-parallel-size": "it follows from --rollout-num-gpus-per-engine",
    "tp": "it follows from --rollout-num-gpus-per-engine",
    "port": "free ports are found at the start",
    "nnodes": "it follows from the placement",
    "node-rank": "it follows from the placement",
    "dist-init-addr": "it follows from the placement",
    "gpu-id-step": "it follows from the placement",
    "base-gpu-id": "it follows from the placement",
    "nccl-port": "free ports are found at the start",
    "skip-server-warmup": "servers are warmed up by the run",
    "enable-return-routed-experts": "it follows from --use-rollout-routing-replay",
}
"""SGLang's flags that the run sets itself, with the reason (dialect 2.9)."""

ROUTERS = {
    "host": "it listens on the driver's host",
    "port": "free ports are found at the start",
    "worker-urls": "it is told of the servers as they start",
}
"""The same of its router."""


def split(flag: str) -> tuple[str, str] | None:
    """(`sglang` or `router`, the flag's own name), or None for any other flag."""
    for prefix, owner in PREFIXES.items():
        if flag.startswith(prefix) and len(flag) > len(prefix):
            return owner, flag.removeprefix(prefix)
    return None


def refusal(owner: str, name: str) -> str | None:
    """Why a flag cannot be given, or None."""
    return (OURS if owner == "sglang" else ROUTERS).get(name)
