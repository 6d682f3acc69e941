"""Which engine samples: the one rule behind `--rollout-engine auto`."""

from collections.abc import Mapping
from importlib.util import find_spec

from tandem.config.config import Config
from tandem.config.draft import Draft
from tandem.config.fields import flag_of

ADDRESSES = "rollout_external_engine_addrs"
FOR_SERVERS = (
    "sglang_python",
    "sglang_router_ip",
    "sglang_router_port",
    "sglang_router_request_timeout_secs",
)
"""Settings that only SGLang's servers and router read; the embedded engine reads the others of
SGLang's names, `--sglang-mem-fraction-static` and `--sglang-server-concurrency`."""


def choose_engine(
    draft: Draft, foreign: Mapping[str, Mapping[str, tuple[str, ...]]], *, has_sglang: bool
) -> None:
    """Puts an engine where the launch names none.

    A launch that has a flag for SGLang's servers gets them, where SGLang is installed; any other
    gets the embedded engine, which samples faster on one device, and on several with one engine on
    each or with `--rollout-num-gpus-per-engine`. `foreign` are the flags kept for others, by who
    takes them.
    """
    if draft["rollout_engine"] != "auto":
        return
    flags = [flag_of(name) for name in FOR_SERVERS if draft.is_said(name)]
    flags += [f"--{owner}-{name}" for owner, names in foreign.items() for name in names]
    if draft[ADDRESSES]:
        draft.put("rollout_engine", "sglang", flag_of(ADDRESSES))
    elif draft["debug_train_only"]:
        draft.put("rollout_engine", "torch", "debug_train_only")
    elif flags and (has_sglang or draft.is_said("sglang_python")):
        draft.put("rollout_engine", "sglang", f"{flags[0]}, which only SGLang's servers take")
    elif flags:
        because = "SGLang not being installed here; --sglang-python names one that is elsewhere"
        draft.put("rollout_engine", "torch", because)
    else:
        draft.put("rollout_engine", "torch", "the flags, none of which is for SGLang's servers")


def who_samples(cfg: Config) -> str:
    """The engine and why it is that one, a sentence for the log."""
    engine, origin = cfg.engine.rollout_engine, cfg.origins.get("rollout_engine", "command line")
    who = "SGLang's servers sample" if engine == "sglang" else "the embedded engine samples"
    return f"{who} (--rollout-engine {engine}: {origin})"


def is_sglang_here() -> bool:
    """Whether this interpreter has SGLang; nothing of it is imported."""
    spec = find_spec("sglang")
    return spec is not None and spec.origin is not None
