"""SGLang servers beside the ranks of a trainer: on the driver's host, fed by the ranks."""

from collections.abc import Sequence
from contextlib import ExitStack

import ray

from tandem.config import Config
from tandem.engine.sglang.launch import Place
from tandem.engine.sglang.server import Server
from tandem.errors import ConfigError
from tandem.runtime.building import Halves
from tandem.runtime.ray.cluster import Reserved, in_bundle
from tandem.runtime.ray.placement import Placement
from tandem.runtime.ray.trainers import TrainerFleet
from tandem.runtime.servers import build_server_sync, build_servers, server_devices
from tandem.types import Weights


class RankCarrier:
    """Has the first rank send the weights, of which all give their parts."""

    def __init__(self, trainers: TrainerFleet, place: Place) -> None:
        self._trainers, self._place = trainers, place

    def send(self, servers: Sequence[Server], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError."""
        addresses = [server.address for server in servers]
        self._trainers.send(addresses, weights.version, self._place)

    def close(self) -> None:
        """The ranks end with their processes."""


def server_place(cfg: Config, placement: Placement, devices: Reserved, dtype: str) -> Place:
    """Which devices of the driver's host servers take; ConfigError if some are on other hosts."""
    is_cpu = "GPU" not in devices.bundle
    chosen = sorted({device for engine in placement.engines for device in engine})
    visible: tuple[str, ...] = ()
    if not is_cpu and chosen:
        probe = ray.remote(_seen).options
        seen = ray.get(
            [
                probe(num_cpus=1, num_gpus=1, **in_bundle(devices.group, devices.bundles[one]))
                .remote()
                for one in chosen
            ]
        )  # fmt: skip
        here = ray.get_runtime_context().get_node_id()
        if any(node != here for node, _ in seen):
            raise ConfigError(
                "--rollout-engine sglang: not yet: servers on other hosts than that of the driver; "
                "start them there and name them with --rollout-external-engine-addrs"
            )
        visible = tuple(device for _, device in seen)
    return Place(
        dtype=dtype,
        is_cpu=is_cpu,
        first_gpu=0,
        num_gpus=len(chosen),
        shares_device=placement.is_shared or cfg.cluster.colocate,
        visible=visible,
    )


def beside_servers(cfg: Config, trainers: TrainerFleet, place: Place, stack: ExitStack) -> Halves:
    """The ranks, and servers that sample."""
    engine = build_servers(cfg, place, stack, lambda members: RankCarrier(trainers, place))
    return Halves(
        trainer=trainers,
        layout=trainers.layout,
        engine=engine,
        holds=None,
        sync=build_server_sync(cfg, engine, trainers, place.dtype),
        devices=server_devices(cfg, engine, place),
        dtype=place.dtype,
    )


def rank_environment(cfg: Config) -> dict[str, str]:
    """The environment of processes that train; the user's own wins."""
    if cfg.engine.rollout_engine != "sglang":
        return dict(cfg.cluster.train_env_vars)
    # read once by NCCL, and both sides of a group must agree on it: SGLang sets 0
    return {"NCCL_CUMEM_ENABLE": "0", **cfg.cluster.train_env_vars}


def _seen() -> tuple[str, str]:
    """The node that this runs on, and its device there."""
    context = ray.get_runtime_context()
    return context.get_node_id(), str(context.get_accelerator_ids()["GPU"][0])
