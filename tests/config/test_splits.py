"""Parallel sizes that cannot work together are refused, with what to set."""

import pytest

NODE = "--actor-num-gpus-per-node"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            f"--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 {NODE} 6",
            "= 4 does not divide 6 training processes; set --actor-num-nodes",
        ),
        (
            f"--expert-model-parallel-size 3 {NODE} 4",
            "does not divide the 4 training processes of a pipeline stage",
        ),
        (
            f"--expert-model-parallel-size 2 --tensor-model-parallel-size 2 {NODE} 4",
            "needs --sequence-parallel",
        ),
        ("--decoder-first-pipeline-num-layers 2", "needs --pipeline-model-parallel-size 2"),
        (
            f"--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 0 {NODE} 2",
            "--num-virtual-stages-per-pipeline-rank 0: wanted 1 or more",
        ),
        (
            f"--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 {NODE} 2 "
            "--num-layers-per-virtual-pipeline-stage 2",
            "leave one of them out",
        ),
        (
            f"--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 {NODE} 2 "
            "--decoder-last-pipeline-num-layers 2",
            "virtual stages are even",
        ),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_what_to_set(line, wanted, read):
    assert any(wanted in failure for failure in read(line)[1])


@pytest.mark.parametrize(
    "line",
    [
        f"--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 {NODE} 8",
        f"--tensor-model-parallel-size 2 --context-parallel-size 2 {NODE} 4 --actor-num-nodes 2",
        f"--expert-model-parallel-size 4 --expert-tensor-parallel-size 1 {NODE} 4",
        f"--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 {NODE} 2",
    ],
)
def test_sizes_that_work_are_not_refused(line, read):
    said = ("not divide", "needs --pipeline", "needs --sequence", "stages are", "leave one")
    assert not [one for one in read(line)[1] if any(word in one for word in said)]


def test_sequence_parallel_without_tensor_parallel_is_ignored_with_a_note(read):
    cfg, failures = read("--sequence-parallel")
    assert not any("--sequence-parallel" in failure for failure in failures)
    assert any("--sequence-parallel" in note for note in cfg.notes)
