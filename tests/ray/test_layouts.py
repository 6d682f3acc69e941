"""The same run on several layouts of processes: the samples and losses of one process."""

import pytest

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def one_process(rows_of):
    return rows_of("--runtime local")


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("perf/")}


def flat(row):
    """Every number of a row, those of single optimizer steps too."""
    found = {name: value for name, value in row.items() if isinstance(value, int | float)}
    for place, step in enumerate(row.get("train_steps", ())):
        found |= {f"{place}/{name}": value for name, value in step.items()}
    return found


def test_a_rank_and_an_engine_apart_give_the_bits_of_one_process(rows_of, one_process):
    rows = rows_of("--actor-num-gpus-per-node 1 --rollout-num-gpus 1")
    assert [without_times(row) for row in rows] == [without_times(row) for row in one_process]


@pytest.mark.parametrize(
    "words",
    [
        "--actor-num-gpus-per-node 1 --rollout-num-gpus 2 --rollout-num-gpus-per-engine 2",
        "--actor-num-gpus-per-node 2 --colocate --rollout-num-gpus-per-engine 2",
        "--actor-num-gpus-per-node 2 --colocate --rollout-num-gpus-per-engine 2 "
        "--tensor-model-parallel-size 2 --sequence-parallel",
    ],
)
def test_an_engine_over_two_processes_samples_what_one_does(words, rows_of, one_process):
    check_near(rows_of(words), one_process)


@pytest.mark.parametrize(
    "words",
    [
        "--actor-num-gpus-per-node 2 --colocate --offload-train",
        "--actor-num-gpus-per-node 2 --rollout-num-gpus 1 --tensor-model-parallel-size 2 "
        "--sequence-parallel",
        "--actor-num-gpus-per-node 2 --colocate --pipeline-model-parallel-size 2",
    ],
)
def test_several_ranks_learn_what_one_learns(words, rows_of, one_process):
    check_near(rows_of(words), one_process)


def test_a_run_saved_on_two_shared_devices_goes_on_apart(rows_of, one_process, tmp_path):
    keeping = f"--load {tmp_path} --save {tmp_path} --save-interval 1"
    first = f"{keeping} --actor-num-gpus-per-node 2 --colocate --offload-train"
    then = f"{keeping} --actor-num-gpus-per-node 1 --rollout-num-gpus 1"
    rows_of(first, num_rollout=1, folder=tmp_path)
    check_near(rows_of(then, num_rollout=2, folder=tmp_path), one_process)


def check_near(rows, wanted_rows):
    """Passes if every number is that of the other run, but for rounding."""
    for row, wanted in zip(rows, wanted_rows, strict=True):
        numbers, expected = flat(without_times(row)), flat(without_times(wanted))
        assert set(numbers) == set(expected)
        for name, value in expected.items():
            # a difference of log-probs that should be 0 is rounding, in one process as in several
            assert numbers[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
