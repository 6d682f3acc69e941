"""How new weights reach the engines."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """Weight update"""

    update_weights_interval: int = 1
    """Rollouts between updates of the engines (asynchronous training)."""
    update_weight_mode: Literal["full", "delta"] = "full"
    """Send all weights, or the bytes that changed."""
    update_weight_transport: Literal["nccl", "disk"] = "nccl"
    """Carrier between processes; one process shares the tensors themselves."""
    update_weight_buffer_size: int = 512 * 2**20
    """Bytes per bucket."""
    update_weight_disk_dir: str | None = None
    """Folder that trainer and engines share."""
    update_weight_disk_keep_files: bool = False
    """Keep the folders of earlier versions."""
    update_weight_delta_encoding: Literal["xor", "overwrite"] = "xor"
    """How changed bytes are written."""
    update_weight_delta_checksum: Literal["xxh3-128", "blake3", "adler32"] = "xxh3-128"
    """Checksum of each changed tensor."""
    update_weight_local_checkpoint_dir: str | None = None
    """Folder on the engine's host that deltas are applied to."""
    custom_update_weight_post_write_path: str | None = None
    """Hook `fn(args, version_dir, rollout_engines)` after files were written."""
    release_train: bool = False
    """End the training processes while engines sample, and start them again from `--save`."""
    check_weight_update_equal: bool = False
    """Compare engine and trainer tensors after an update."""
