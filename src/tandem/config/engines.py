"""Which engine samples: the one rule behind `--rollout-engine auto`; what servers cannot do."""

from collections.abc import Iterator, Mapping
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


def server_rules(cfg: Config) -> Iterator[str]:
    """What SGLang's servers, which are processes beside that of the trainer, cannot do."""
    cluster, engine = cfg.cluster, cfg.engine
    num_samplers = cluster.rollout_num_gpus
    if cluster.runtime == "local" and cluster.num_trainers > 1:
        yield "--runtime local is one trainer; leave --runtime out"
    if cluster.runtime == "ray" and cfg.debug.debug_rollout_only:
        yield "--debug-rollout-only with SGLang takes no trainers; set --runtime local"
    is_asked = cluster.colocate or num_samplers or cfg.rollout.rollout_external_engine_addrs
    if cluster.runtime == "ray" and not (is_asked or cfg.debug.debug_train_only):
        yield "--rollout-num-gpus is required: the devices that sample (or --colocate)"
    if (engine.sglang_router_ip is None) != (engine.sglang_router_port is None):
        yield "--sglang-router-ip and --sglang-router-port go together: where the router listens"
    is_ours = engine.sglang_router_ip is None
    if is_ours and cfg.passthrough.router.get("policy") == ("power_of_two",):
        yield (
            "--router-policy power_of_two: the stock router wants two servers before it starts, "
            "and is told of them as they come up; set cache_aware, round_robin, random or manual"
        )
    yield from _parts(cfg)


def _parts(cfg: Config) -> Iterator[str]:
    """How a server divides its devices; SGLang would take others, or wait for them for ever."""
    flags, per_engine = cfg.passthrough.sglang, cfg.cluster.rollout_num_gpus_per_engine
    stages = pipeline_stages(flags)
    if per_engine % stages:
        yield (
            f"--sglang-pp-size {stages} does not divide --rollout-num-gpus-per-engine {per_engine}"
        )
    elif stages > 1 and not (cfg.cluster.colocate or cfg.sync.update_weight_transport == "disk"):
        yield (
            f"--sglang-pp-size {stages}: the stages of a pipeline cannot join a process group "
            "for weights; add --update-weight-transport disk, or leave it out"
        )
    copies = _number(flags, "dp-size", "data-parallel-size")
    if copies > 1 and "enable-dp-attention" not in flags:
        yield (
            f"--sglang-dp-size {copies} would take devices that are not set aside; leave it out, "
            "as every --rollout-num-gpus-per-engine devices are a server of their own, or add "
            "--sglang-enable-dp-attention"
        )


def pipeline_stages(flags: Mapping[str, tuple[str, ...]]) -> int:
    """Into how many parts of its layers a server divides a model, by SGLang's flags."""
    return _number(flags, "pp-size", "pipeline-parallel-size")


def _number(flags: Mapping[str, tuple[str, ...]], *names: str) -> int:
    """What one of these flags says; 1 where none does, or none a number above 0."""
    said = next((flags[name] for name in names if name in flags), ("1",))
    return max(1, int(said[0])) if said and said[0].isdigit() else 1


def is_sglang_here() -> bool:
    """Whether this interpreter has SGLang; nothing of it is imported."""
    spec = find_spec("sglang")
    return spec is not None and spec.origin is not None
