"""A trainer in this process, and SGLang servers beside it that sample."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from tandem.config import Config
from tandem.contracts import Trainer
from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.fleet import Carrier
from tandem.engine.sglang.launch import Place, gives_memory_back, launch
from tandem.engine.sglang.members import Member
from tandem.engine.sglang.weights import SglangSync
from tandem.errors import ConfigError
from tandem.loop import Devices
from tandem.observe import get_logger
from tandem.sync.check import failures_of

log = get_logger("servers")


def place_of(cfg: Config, device: torch.device, dtype: str) -> Place:
    """Where the servers of this host run; raises ConfigError when it has too few devices.

    With `--colocate` they begin at the trainer's device, else at the one after it.
    """
    num_gpus, first = cfg.cluster.rollout_num_gpus or 1, 0 if cfg.cluster.colocate else 1
    per_engine, num_here = cfg.cluster.rollout_num_gpus_per_engine, torch.cuda.device_count()
    is_ours = not cfg.rollout.rollout_external_engine_addrs
    wanted = first + max(num_gpus, per_engine)
    if device.type == "cuda" and is_ours and num_here < wanted:
        hint = "" if first == 0 else ", or add --colocate so that they share the trainer's"
        raise ConfigError(
            f"--rollout-engine sglang: the trainer and its servers want {wanted} devices, and this "
            f"machine has {num_here}; lower --rollout-num-gpus or --rollout-num-gpus-per-engine"
            + hint
        )
    return Place(
        dtype=dtype,
        is_cpu=device.type == "cpu",
        first_gpu=first,
        num_gpus=num_gpus,
        shares_device=cfg.cluster.colocate,
    )


def build_servers(
    cfg: Config,
    place: Place,
    stack: ExitStack,
    brings: Callable[[Sequence[Member]], Carrier] | None = None,
) -> SglangEngine:
    """The engine over servers that answer; raises EngineError with the last lines of one that
    ended. `brings(members)` gives what carries weights; this process does when unset."""
    engine = launch(cfg, place, brings)
    stack.callback(engine.close)
    for member in engine.fleet.members:
        log.info("%s at %s is starting", member.name, member.server.url)
    engine.fleet.until_up()
    return engine


def build_server_sync(
    cfg: Config, engine: SglangEngine, trainer: Trainer, dtype: str
) -> SglangSync:
    """What publishes weights to the servers.

    While a synchronous run samples, the trainer still has the weights of the last update, so a
    server that died gets them again.
    """
    again = trainer.weights if cfg.sync.asynchronous == "off" else None
    return SglangSync(engine.fleet, failures_of, dtype=dtype, again=again)


def server_devices(cfg: Config, engine: SglangEngine, place: Place) -> Devices:
    """Whose turn it is where trainer and servers share a device; nothing where they do not.

    After sampling the servers give all their memory back; the update after training takes room for
    weights first, then for cache and graphs.
    """
    if not (place.shares_device and gives_memory_back(cfg, place)):
        return Devices()

    @contextmanager
    def sampling() -> Iterator[None]:
        yield
        if not engine.stats().num_running:
            engine.sleep()

    @contextmanager
    def publishing() -> Iterator[None]:
        torch.cuda.empty_cache()  # what the trainer holds and does not use
        yield

    return Devices(sampling=sampling, publishing=publishing)
