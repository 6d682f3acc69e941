"""Machines, processes and who shares a device with whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Cluster and placement"""

    runtime: Literal["auto", "local", "ray"] = "auto"
    """One process (`local`) or Ray actors (`ray`); `auto`: local when one process is enough."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; `auto`: cuda when the machine has one, else the CPU."""
    actor_num_nodes: int = 1
    """Hosts that train."""
    actor_num_gpus_per_node: int | None = None
    """Training processes per host, one device each; 1 when unset."""
    rollout_num_gpus: int | None = None
    """Devices that sample, in all; those of the trainer when colocated or in one process."""
    rollout_num_gpus_per_engine: int = 1
    """Devices per inference engine."""
    num_gpus_per_node: int | None = None
    """Devices of a host that engines may be placed on; `actor_num_gpus_per_node` when unset."""
    colocate: bool = False
    """Training and sampling share devices; turns both offloads on."""
    offload: bool = False
    """Short for `--offload-train --offload-rollout`."""
    offload_train: bool | None = None
    """The trainer gives its memory back while the engines sample; on when colocated."""
    offload_rollout: bool | None = None
    """The engines give their memory back while the trainer learns; on when colocated."""
    distributed_backend: Literal["nccl", "gloo"] = "nccl"
    """Backend of torch.distributed; the CPU always uses gloo."""
    distributed_timeout_minutes: int = 10
    """Minutes after which a collective that does not finish stops the run."""
    train_env_vars: Mapping[str, str] = field(default_factory=dict)
    """Environment of the training processes, as JSON."""
    heartbeat_timeout: float = 60.0
    """Seconds without any progress after which a process is named, with what it waits for and the
    stacks of all."""
    use_fault_tolerance: bool = False
    """Also restart an engine on its own devices that lives and does not move; one that died always
    is."""
    rollout_health_check_interval: float = 30.0
    """Seconds between two health checks of an engine."""
    rollout_health_check_timeout: float = 30.0
    """Seconds after which an engine that does not answer counts as dead."""
    rollout_health_check_first_wait: float = 0.0
    """Seconds before the first health check."""

    @property
    def num_trainers(self) -> int:
        """Training processes in all."""
        return self.actor_num_nodes * (self.actor_num_gpus_per_node or 1)

    @property
    def engines_cover_ranks(self) -> bool:
        """Whether engines of several devices, if on those that train, take all of them."""
        size = self.rollout_num_gpus_per_engine
        return size == 1 or not (
            self.num_trainers % size or (self.rollout_num_gpus or 0) < self.num_trainers
        )
