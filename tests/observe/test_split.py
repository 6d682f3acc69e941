"""What a run folder says about splitting its devices between training and sampling."""

import json

import pytest

from tandem.cli import main
from tandem.errors import DataError
from tandem.observe.split import split_text


@pytest.fixture
def run(tmp_path):
    """Makes a run folder of these settings, whose later steps sample 30 s and learn 10 s."""

    def folder(cluster, parallel=None, times=None):
        config = {"cluster": cluster, "parallel": parallel or {}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        times = times or {"perf/rollout_time": 30.0, "perf/train_time": 10.0}
        slow = dict.fromkeys(times, 99.0)  # while kernels are built
        rows = [slow, slow, {"eval/heldout": 0.5}, *[times | {"perf/update_weights_time": 0.5}] * 3]
        text = "".join(json.dumps({"step": n} | row) + "\n" for n, row in enumerate(rows))
        (tmp_path / "metrics.jsonl").write_text(text)
        return tmp_path

    return folder


APART = {"actor_num_nodes": 1, "actor_num_gpus_per_node": 4, "rollout_num_gpus": 4}
MEASURED = "measured: sampling 30.00 s on 4, learning 10.00 s on 4, weight update 0.50 s"


def test_a_run_with_devices_apart_is_told_where_both_last_equally_long(run):
    # 120 device seconds of sampling and 40 of learning: 6 and 2 devices take 20 s each
    assert split_text(run(APART)).splitlines() == [
        MEASURED,
        "8 devices: 6 to sample, 2 to train: a step of 20.50 s where both overlap, 20.50 s where "
        "all take turns (train.py --colocate)",
    ]


def test_shared_devices_are_counted_once(run):
    shared = APART | {"rollout_num_gpus": 4, "colocate": True}
    assert split_text(run(shared)).splitlines() == [
        MEASURED,
        "4 devices: 3 to sample, 1 to train: a step of 40.50 s where both overlap, 40.50 s where "
        "all take turns (train.py --colocate)",
    ]


def test_what_was_sampled_beside_training_counts_as_long_as_it_took(run):
    times = {"perf/rollout_time": 2.0, "perf/sampling_time": 30.0, "perf/train_time": 10.0}
    assert split_text(run(APART, times=times)).startswith(MEASURED)


def test_engines_and_trainers_are_not_cut(run):
    cluster = APART | {"rollout_num_gpus_per_engine": 2}
    parallel = {"tensor_model_parallel_size": 4, "context_parallel_size": 1}
    text = split_text(run(cluster, parallel))
    assert "8 devices: 4 to sample, 4 to train: a step of 30.50 s" in text
    text = split_text(run(cluster, parallel), 4)
    assert "4 devices: too few for an engine and a trainer apart" in text


def test_a_run_on_one_device_is_told_of_several(run):
    text = split_text(run({"runtime": "local", "rollout_num_gpus": 1}))
    assert text.splitlines()[0].startswith("measured: sampling 30.00 s on 1, learning 10.00 s on 1")
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == [
        "4 devices",
        "8 devices",
        "16 devices",
    ]
    assert "16 devices: 12 to sample, 4 to train: a step of 3.00 s" in text


def test_the_command_splits_as_many_devices_as_it_is_asked_to(run, capsys):
    assert main(["split", str(run(APART)), "--devices", "16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(MEASURED) and "16 devices: 12 to sample, 4 to train" in said


def test_a_folder_without_steps_says_what_is_wanted(tmp_path):
    with pytest.raises(DataError, match="holds no step with its times"):
        split_text(tmp_path)
