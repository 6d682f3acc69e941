"""Which devices train and which sample: a pure function of the flags."""

from dataclasses import dataclass

from tandem.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The run's devices by number, in the stable order that the cluster gives them.

    Trainers take the first ones, rank by rank. Engines begin at 0 as well where they share devices
    with the trainers, else behind them.
    """

    num_devices: int
    num_trainers: int
    engines: tuple[range, ...]  # the devices of each

    @property
    def is_shared(self) -> bool:
        """Whether a device both trains and samples."""
        return bool(self.engines) and self.engines[0].start < self.num_trainers


def place(cfg: Config) -> Placement:
    """The placement that the flags ask for (dialect 1.1)."""
    cluster, debug = cfg.cluster, cfg.debug
    num_trainers = 0 if debug.debug_rollout_only else cluster.num_trainers
    num_samplers = 0 if debug.debug_train_only else cluster.rollout_num_gpus or 0
    is_shared = cluster.colocate and not debug.debug_rollout_only
    first = 0 if is_shared else num_trainers
    per_engine = cluster.rollout_num_gpus_per_engine
    return Placement(
        num_devices=max(num_trainers, first + num_samplers),
        num_trainers=num_trainers,
        engines=tuple(
            range(first + start, first + start + per_engine)
            for start in range(0, num_samplers - per_engine + 1, per_engine)
        ),
    )


def asked(placement: Placement, cfg: Config) -> str:
    """The placement in words of the flags, for messages."""
    parts = []
    if placement.num_trainers:
        nodes, per_node = cfg.cluster.actor_num_nodes, cfg.cluster.actor_num_gpus_per_node
        parts.append(
            f"{placement.num_trainers} that train (--actor-num-nodes {nodes} x "
            f"--actor-num-gpus-per-node {per_node})"
        )
    if placement.engines:
        where = "of the same" if placement.is_shared else "others"
        where = where if placement.num_trainers else "all"
        count = sum(map(len, placement.engines))
        parts.append(f"{count} that sample, {where} (--rollout-num-gpus {count})")
    return f"{placement.num_devices} devices: " + " and ".join(parts)
