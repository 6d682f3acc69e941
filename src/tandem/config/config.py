"""One frozen value that holds every setting of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tandem.config.sections.learning import (
    AlgoConfig,
    BatchConfig,
    OptimConfig,
    ParallelConfig,
    SyncConfig,
)
from tandem.config.sections.run import (
    CheckpointConfig,
    ClusterConfig,
    DebugConfig,
    ModelConfig,
    ObserveConfig,
)
from tandem.config.sections.sampling import (
    DataConfig,
    EngineConfig,
    EvalConfig,
    RewardConfig,
    RolloutConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passthrough:
    """Flags of SGLang (`--sglang-*`) and its router (`--router-*`), words kept as they came.

    Keys are flag names without the prefix and with dashes: `{"cuda-graph-bs": ("1", "2")}`; a
    switch has no words.
    """

    sglang: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    router: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, by section, with where each came from."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    passthrough: Passthrough = field(default_factory=Passthrough)
    expectations: Mapping[str, Any] = field(default_factory=dict)
    """What the script's model flags say about the checkpoint: `{"num-layers": 36}`."""
    custom: Mapping[str, Any] = field(default_factory=dict)
    """The user's own values, from `custom:` in `--custom-config-path`; hooks see them."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where a value came from, for every field that is not its default."""
    notes: tuple[str, ...] = ()
    """Settings that were given and have no effect, with the reason; said once in the log."""


NO_SECTIONS = ("passthrough", "expectations", "custom", "origins", "notes")

SECTIONS: Mapping[str, Any] = {
    entry.name: entry.type for entry in fields(Config) if entry.name not in NO_SECTIONS
}
"""The classes of the sections by name."""
