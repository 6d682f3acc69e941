"""Every knob of a run. A field is a flag: its name, default, type, and help below it."""

from tandem.config.sections.algo import AlgoConfig
from tandem.config.sections.batch import BatchConfig
from tandem.config.sections.checkpoint import CheckpointConfig
from tandem.config.sections.cluster import ClusterConfig
from tandem.config.sections.data import DataConfig
from tandem.config.sections.debug import DebugConfig
from tandem.config.sections.engine import EngineConfig
from tandem.config.sections.eval import EvalConfig, EvalSet
from tandem.config.sections.model import ModelConfig
from tandem.config.sections.observe import ObserveConfig
from tandem.config.sections.optim import OptimConfig
from tandem.config.sections.parallel import ParallelConfig
from tandem.config.sections.reward import RewardConfig
from tandem.config.sections.rollout import RolloutConfig
from tandem.config.sections.sync import SyncConfig

SECTIONS = {
    "cluster": ClusterConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "rollout": RolloutConfig,
    "engine": EngineConfig,
    "reward": RewardConfig,
    "eval": EvalConfig,
    "algo": AlgoConfig,
    "optim": OptimConfig,
    "batch": BatchConfig,
    "parallel": ParallelConfig,
    "checkpoint": CheckpointConfig,
    "sync": SyncConfig,
    "observe": ObserveConfig,
    "debug": DebugConfig,
}

__all__ = [
    "SECTIONS",
    "AlgoConfig",
    "BatchConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "DataConfig",
    "DebugConfig",
    "EngineConfig",
    "EvalConfig",
    "EvalSet",
    "ModelConfig",
    "ObserveConfig",
    "OptimConfig",
    "ParallelConfig",
    "RewardConfig",
    "RolloutConfig",
    "SyncConfig",
]
