"""Flags to one frozen `Config`. Standard library only, so that `--help` answers at once."""

from tandem.config.config import Config, Passthrough
from tandem.config.sections import (
    SECTIONS,
    AlgoConfig,
    BatchConfig,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    DebugConfig,
    EngineConfig,
    EvalConfig,
    EvalSet,
    ModelConfig,
    ObserveConfig,
    OptimConfig,
    ParallelConfig,
    RewardConfig,
    RolloutConfig,
    SyncConfig,
)

__all__ = [
    "SECTIONS",
    "AlgoConfig",
    "BatchConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DebugConfig",
    "EngineConfig",
    "EvalConfig",
    "EvalSet",
    "ModelConfig",
    "ObserveConfig",
    "OptimConfig",
    "ParallelConfig",
    "Passthrough",
    "RewardConfig",
    "RolloutConfig",
    "SyncConfig",
]
