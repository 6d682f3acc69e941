"""Curves that go elsewhere when asked: TensorBoard and Weights & Biases."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tandem.config import ObserveConfig
from tandem.contracts import Sink
from tandem.errors import ConfigError

STEP_AXES = {
    "train/*": "train/step",
    "rollout/*": "rollout/step",
    "perf/*": "rollout/step",
    "passrate/*": "rollout/step",
    "multi_turn/*": "rollout/step",
    "eval/*": "eval/step",
}
"""The metric that is the horizontal axis of each family (dialect 4.10)."""


def open_sinks(
    observe: ObserveConfig, run_dir: Path, *, start: int, settings: Mapping[str, Any]
) -> list[Sink]:
    """The sinks that the flags ask for; raises ConfigError when a library is not installed.

    `start` is the first step of this process, `settings` is what is shown as the run's
    configuration.
    """
    sinks: list[Sink] = []
    if observe.use_tensorboard:
        library = load_extra("torch.utils.tensorboard", "--use-tensorboard", "tensorboard")
        folder = tensorboard_folder(observe, run_dir, os.environ)
        sinks.append(TensorBoardSink(library.SummaryWriter(str(folder), purge_step=start)))
    if observe.use_wandb:
        wandb = load_extra("wandb", "--use-wandb", "wandb")
        if observe.wandb_key is not None:
            wandb.login(key=observe.wandb_key, host=observe.wandb_host)
        run = wandb.init(**wandb_arguments(observe, run_dir), config=dict(settings))
        sinks.append(WandbSink(run))
    return sinks


def load_extra(module: str, flag: str, extra: str) -> ModuleType:
    """The module; raises ConfigError naming the extra to install when it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{flag} needs a library that is not installed ({error}); "
            f"run: pip install 'tandem-rl[{extra}]', or leave the flag out"
        ) from error


def tensorboard_folder(
    observe: ObserveConfig, run_dir: Path, environment: Mapping[str, str]
) -> Path:
    """`TENSORBOARD_DIR`, else `tensorboard/` of the run, and in it project and experiment."""
    root = Path(environment.get("TENSORBOARD_DIR") or run_dir / "tensorboard")
    names = (observe.tb_project_name, observe.tb_experiment_name)
    return root.joinpath(*(name for name in names if name))


def wandb_arguments(observe: ObserveConfig, run_dir: Path) -> dict[str, Any]:
    """What `wandb.init` is called with: the flags, and a name from the group and the folder.

    With `--wandb-run-id` the run with that id is continued.
    """
    name = observe.wandb_group
    if name is not None and not observe.disable_wandb_random_suffix:
        name = f"{name}_{run_dir.name}"
    return {
        "project": observe.wandb_project,
        "entity": observe.wandb_team,
        "group": observe.wandb_group,
        "name": name,
        "dir": observe.wandb_dir or str(run_dir),
        "mode": observe.wandb_mode,
        "id": observe.wandb_run_id,
        "resume": "allow" if observe.wandb_run_id is not None else None,
    }


class TensorBoardSink:
    """Writes each number as a scalar, flushed at every step."""

    def __init__(self, writer: Any) -> None:
        """`writer` is a `SummaryWriter`, or what looks like one."""
        self._writer = writer

    def write(self, row: Mapping[str, Any], *, step: int) -> None:
        for name, value in numbers(row):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Sends each row to a run, with the step as one of its numbers."""

    def __init__(self, run: Any) -> None:
        """`run` is what `wandb.init` gave, or what looks like it."""
        self._run = run
        for axis in sorted(set(STEP_AXES.values())):
            run.define_metric(axis)
        for family, axis in STEP_AXES.items():
            run.define_metric(family, step_metric=axis)

    def write(self, row: Mapping[str, Any], *, step: int) -> None:
        # its own step must never go back, which a resumed run would do: the axes are metrics
        self._run.log(dict(numbers(row)))

    def close(self) -> None:
        self._run.finish()


def numbers(row: Mapping[str, Any]) -> Sequence[tuple[str, float]]:
    """The entries of a row that can be drawn."""
    return [
        (name, value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
