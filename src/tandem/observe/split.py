"""How devices are best split between training and sampling, from the times that a run measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tandem.errors import DataError
from tandem.observe.journal import CONFIG_FILE, METRICS_FILE, read_json, read_rows

MODEL_AXES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
)
EXAMPLES = (4, 8, 16)
"""Numbers of devices that are spoken of after a run on one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phases:
    """Seconds of one step, and on how many devices they were measured."""

    sampling_s: float
    learning_s: float
    publishing_s: float
    num_sampling: int
    num_learning: int

    def overlapped_s(self, num_sampling: int, num_learning: int) -> float:
        """Seconds of a step on so many devices, where sampling and learning overlap."""
        sampling_s = self.sampling_s * self.num_sampling / num_sampling
        learning_s = self.learning_s * self.num_learning / num_learning
        return max(sampling_s, learning_s) + self.publishing_s

    def in_turns_s(self, num_devices: int) -> float:
        """Seconds of a step where all devices do one after the other."""
        sampling_s = self.sampling_s * self.num_sampling / num_devices
        learning_s = self.learning_s * self.num_learning / num_devices
        return sampling_s + learning_s + self.publishing_s


def phases_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    num_sampling: int,
    num_learning: int,
    num_ahead: int = 0,
) -> Phases | None:
    """Medians over the later half of a run's rows, where nothing is compiled any more.

    None as long as no step is there. What an asynchronous run sampled beside training counts as
    long as it took, not as long as the trainer waited for it. While the last `num_ahead` steps were
    trained, nothing was left to sample: they are left out.
    """
    steps = [row for row in rows if row.get("perf/train_time") is not None]
    steps = steps[: max(1, len(steps) - num_ahead)]
    steps = steps[len(steps) // 2 :]
    if not steps:
        return None

    def of(row: Mapping[str, Any], *names: str) -> float:
        return next((row[name] for name in names if row.get(name) is not None), 0.0)

    return Phases(
        sampling_s=median(of(row, "perf/sampling_time", "perf/rollout_time") for row in steps),
        learning_s=median(of(row, "perf/train_time") for row in steps),
        publishing_s=median(of(row, "perf/update_weights_time") for row in steps),
        num_sampling=num_sampling,
        num_learning=num_learning,
    )


def propose(
    phases: Phases, num_devices: int, *, engine_size: int = 1, trainer_size: int = 1
) -> tuple[int, int] | None:
    """(devices that sample, devices that train) whose overlapped step is shortest.

    Work is taken to divide evenly over devices. Engines take `engine_size` devices each, trainers a
    multiple of `trainer_size`. Of equal steps the one with more devices that train is taken. None
    where not even one of each fits.
    """
    choices = [
        (phases.overlapped_s(sampling, num_devices - sampling), sampling)
        for sampling in range(engine_size, num_devices, engine_size)
        if (num_devices - sampling) % trainer_size == 0
    ]
    if not choices:
        return None
    _, sampling = min(choices)
    return sampling, num_devices - sampling


def split_text(run_dir: Path | str, num_devices: int | None = None) -> str:
    """What a run folder says about splitting `num_devices` (those of the run, when unset).

    Raises DataError when the folder holds no step.
    """
    run_dir = Path(run_dir)
    config = read_json(run_dir / CONFIG_FILE) or {}
    cluster, parallel = config.get("cluster", {}), config.get("parallel", {})
    num_learning = (cluster.get("actor_num_nodes") or 1) * (
        cluster.get("actor_num_gpus_per_node") or 1
    )
    num_sampling = cluster.get("rollout_num_gpus") or num_learning
    is_shared = cluster.get("colocate") or cluster.get("runtime") == "local"
    sync = config.get("sync", {})
    phases = phases_of(
        read_rows(run_dir / METRICS_FILE),
        num_sampling=num_sampling,
        num_learning=num_learning,
        num_ahead=sync["max_staleness"] if sync.get("asynchronous") == "full" else 0,
    )
    if phases is None:
        raise DataError(
            f"{run_dir} holds no step with its times ({METRICS_FILE}); wanted is the folder of a "
            "run that trained (--run-dir, else its --save)"
        )
    trainer_size = math.prod(parallel.get(name) or 1 for name in MODEL_AXES)
    total = num_devices or (num_learning if is_shared else num_learning + num_sampling)
    lines = [
        f"measured: sampling {phases.sampling_s:.2f} s on {num_sampling}, learning "
        f"{phases.learning_s:.2f} s on {num_learning}, weight update {phases.publishing_s:.2f} s"
    ]
    for count in (total,) if total > 1 else EXAMPLES:
        sizes = {"engine_size": cluster.get("rollout_num_gpus_per_engine") or 1}
        lines.append(
            _line(phases, count, propose(phases, count, trainer_size=trainer_size, **sizes))
        )
    return "\n".join(lines)


def _line(phases: Phases, count: int, split: tuple[int, int] | None) -> str:
    if split is None:
        return f"{count} devices: too few for an engine and a trainer apart"
    sampling, learning = split
    return (
        f"{count} devices: {sampling} to sample, {learning} to train: a step of "
        f"{phases.overlapped_s(sampling, learning):.2f} s where both overlap, "
        f"{phases.in_turns_s(count):.2f} s where all take turns (train.py --colocate)"
    )
