"""Flags to one frozen `Config`. Standard library only, so that `--help` answers at once."""

from tandem.config.config import (
    AlgoConfig,
    BatchConfig,
    Config,
    DataConfig,
    DebugConfig,
    EngineConfig,
    ObserveConfig,
    OptimConfig,
    ParallelConfig,
    Passthrough,
    RewardConfig,
    RolloutConfig,
)
from tandem.config.flat import flat, to_dict
from tandem.config.load import load_config, read_config
from tandem.config.page import flags_table, help_text, show
from tandem.config.resolve import complete
from tandem.config.rules import check, check_files
from tandem.config.sections.sampling import EvalSet
from tandem.config.shapes import check_expectations

__all__ = [
    "AlgoConfig",
    "BatchConfig",
    "Config",
    "DataConfig",
    "DebugConfig",
    "EngineConfig",
    "EvalSet",
    "ObserveConfig",
    "OptimConfig",
    "ParallelConfig",
    "Passthrough",
    "RewardConfig",
    "RolloutConfig",
    "check",
    "check_expectations",
    "check_files",
    "complete",
    "flags_table",
    "flat",
    "help_text",
    "load_config",
    "read_config",
    "show",
    "to_dict",
]
