"""What this version cannot do. A row goes when the capability comes.

A value that needs one of these is refused with "not yet"; it is never ignored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tandem.config.config import Config
from tandem.config.fields import flag_of, knobs

UNSET: tuple[Any, ...] = (None, False, (), {})
"""Values of fields that ask for nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """Fields that need something to come, the values that do not, and what to do instead."""

    names: str  # blank-separated
    what: str
    instead: str
    fine: tuple[Any, ...] = UNSET


def said(what: str) -> str:
    """The refusal of something to come."""
    return f"not yet: {what}"


def refusals(cfg: Config) -> Iterator[str]:
    """One sentence for every value that this version cannot honour."""
    table = knobs()
    has_servers = cfg.engine.rollout_engine == "sglang"
    for row in ROWS + SERVER_ROWS if has_servers else ROWS:
        for name in row.names.split():
            value = getattr(getattr(cfg, table[name].section), name)
            is_derived = cfg.origins.get(name, "").startswith("derived")
            is_fine = any(value == fine and type(value) is type(fine) for fine in row.fine)
            if not (is_derived or is_fine):
                told = flag_of(name) if value is True else f"{flag_of(name)} {_shown(value)}"
                instead = row.instead.format(flag=flag_of(name))
                yield f"{told}: {said(row.what)}; {instead}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


LEAVE_OUT = "leave {flag} out"

ROWS = (
    # --- more than one process
    Row("allgather_cp", "context parallelism", LEAVE_OUT),
    Row(
        "release_train",
        "training processes that end and come back",
        "leave {flag} out; --offload-train gives back all of a device but the weights",
    ),
    Row("rollout_data_transport", "NIXL", "leave {flag} out", ("object-store",)),
    # --- rollouts
    Row(
        "rollout_top_p",
        "training on a nucleus, whose log-probs the trainer must mask alike",
        "set {flag} 1 (--eval-top-p is free)",
        (1.0,),
    ),
    # --- data
    Row("multimodal_keys", "images and other media", LEAVE_OUT),
)

SERVER_ROWS = (
    Row(
        "update_weight_mode",
        "updates of SGLang servers as changed bytes",
        "set {flag} full",
        ("full",),
    ),
    Row(
        "update_weight_local_checkpoint_dir custom_update_weight_post_write_path",
        "SGLang servers with it",
        LEAVE_OUT,
    ),
)
"""What the embedded engine takes, and SGLang servers not yet."""

OLD_FLAGS = (
    (
        "latent attention",
        "--multi-latent-attention --freeze-indexer --q-lora-rank= --kv-lora-rank= --qk-head-dim= "
        "--qk-pos-emb-head-dim= --v-head-dim= --mscale= --mscale-all-dim=",
    ),
    (
        "this kind of layer",
        "--apply-layernorm-1p --use-gated-attention --attention-output-gate "
        "--post-self-attn-layernorm --post-mlp-layernorm --rotary-interleaved",
    ),
    ("linear attention", "--qwen-gdn-backend="),
    (
        "prediction of several tokens",
        "--mtp-num-layers= --mtp-loss-scaling-factor= --enable-mtp-training",
    ),
    (
        "8-bit training",
        "--fp8-format= --fp8-recipe= --fp8-param-gather --megatron-deepgemm-forward-layers... "
        "--megatron-deepgemm-forward-modules... --megatron-deepgemm-moe-forward-layers... "
        "--megatron-deepgemm-moe-forward-modules...",
    ),
    (
        "profiling by flag",
        "--record-memory-history --profile --use-pytorch-profiler --memory-snapshot-dir= "
        "--memory-snapshot-num-steps= --memory-recorder= --profile-target= --profile-step-start= "
        "--profile-step-end=",
    ),
    (
        "servers for prefill alone, which need a library that moves caches between servers",
        "--prefill-num-servers=",
    ),
    ("servers of several kinds or models", "--sglang-config="),
)
"""What is to come, and the old spellings that need it, in the notation of `legacy`."""
