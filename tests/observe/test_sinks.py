import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tandem.config import ObserveConfig
from tandem.errors import ConfigError
from tandem.observe.sinks import (
    TensorBoardSink,
    WandbSink,
    load_extra,
    open_sinks,
    tensorboard_folder,
    wandb_arguments,
)


class FakeRun:
    """What `wandb.init` gives, as far as the sink uses it."""

    def __init__(self):
        self.axes = {}
        self.rows = []
        self.is_finished = False

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.is_finished = True


def test_no_sinks_unless_asked(tmp_path):
    assert open_sinks(ObserveConfig(), tmp_path, start=0, settings={}) == []


def test_library_that_is_not_installed_is_an_error_naming_flag_and_extra():
    with pytest.raises(ConfigError, match=r"--use-thing needs .* pip install 'tandem-rl\[thing\]'"):
        load_extra("tandem_has_no_such_module", "--use-thing", "thing")


def test_tensorboard_holds_the_numbers_at_their_steps(tmp_path):
    observe = ObserveConfig(use_tensorboard=True, tb_project_name="p", tb_experiment_name="e")
    (sink,) = open_sinks(observe, tmp_path, start=0, settings={})
    assert isinstance(sink, TensorBoardSink)
    sink.write({"train/loss": 0.5, "train/steps": [{}], "train/bad": None}, step=3)
    sink.write({"train/loss": 0.25}, step=4)
    sink.close()
    folder = tensorboard_folder(observe, tmp_path, os.environ)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (3, 0.5),
        (4, 0.25),
    ]


def test_tensorboard_folder_follows_environment_and_names():
    named = ObserveConfig(tb_project_name="p", tb_experiment_name="e")
    assert tensorboard_folder(named, Path("run"), {}) == Path("run/tensorboard/p/e")
    environment = {"TENSORBOARD_DIR": "elsewhere"}
    assert tensorboard_folder(ObserveConfig(), Path("run"), environment) == Path("elsewhere")


def test_wandb_gets_each_family_on_its_own_axis():
    run = FakeRun()
    sink = WandbSink(run)
    sink.write({"train/step": 7, "train/loss": 0.5, "train/bad": None}, step=7)
    sink.close()
    assert run.axes["train/*"] == "train/step"
    assert run.axes["eval/*"] == "eval/step"
    assert run.axes["rollout/*"] == "rollout/step"
    assert run.rows == [{"train/step": 7, "train/loss": 0.5}]
    assert run.is_finished


def test_wandb_name_is_the_group_with_the_run_folder_unless_switched_off():
    observe = ObserveConfig(
        wandb_group="g", wandb_project="p", wandb_team="t", wandb_mode="offline"
    )
    arguments = wandb_arguments(observe, Path("runs/monday"))
    assert arguments["name"] == "g_monday"
    assert (arguments["project"], arguments["entity"], arguments["mode"]) == ("p", "t", "offline")
    assert arguments["resume"] is None
    plain = ObserveConfig(wandb_group="g", disable_wandb_random_suffix=True, wandb_run_id="id")
    arguments = wandb_arguments(plain, Path("runs/monday"))
    assert (arguments["name"], arguments["id"], arguments["resume"]) == ("g", "id", "allow")
