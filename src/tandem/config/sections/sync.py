"""How new weights reach the engines."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """Weight update"""

    asynchronous: Literal["off", "one-step", "full"] = "off"
    """Sample while training goes on: one rollout ahead (what `train_async.py` sets), or without
    end, with new weights put under running answers."""
    update_weights_interval: int = 1
    """Rollouts between updates of the engines (asynchronous training)."""
    max_staleness: int | None = None
    """Most rollouts that were learned from between the weights that chose a token and the step that
    trains it. The update interval when unset, and one more when fully asynchronous; 0: nothing
    overlaps."""
    auto_split: bool = False
    """Say at the end of a run how its devices are best split between training and sampling, by the
    times that were measured (`tandem split` says it of any run folder)."""
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
