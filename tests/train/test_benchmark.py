"""The training benchmark runs under torchrun, on CPU processes as on GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train.py"


def test_the_benchmark_measures_a_mesh_that_torchrun_starts(tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    flags = ["--tiny", "--tp", "2", "--sp", "--settings", "full:64", "--out", str(tmp_path)]
    done = subprocess.run(
        [*launch, str(SCRIPT), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (tmp_path / "train.json").read_text().splitlines()
    (row,) = json.loads(line)["rows"]
    assert (row["gpus"], row["tp"], row["dp"]) == (2, 2, 1)
    assert row["tokens_per_s_and_gpu"] > 0 and row["mfu_of_989"] > 0
