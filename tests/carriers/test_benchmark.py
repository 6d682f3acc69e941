"""The benchmark of weight updates runs under torchrun, on CPU processes as on GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "update.py"


def test_the_benchmark_measures_every_carrier(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = ["--tiny", "--carriers", "group", "ipc", "folder", "delta", "--out", str(tmp_path)]
    done = subprocess.run(
        [*launch, str(SCRIPT), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (tmp_path / "update.json").read_text().splitlines()
    rows = json.loads(line)["rows"]
    assert [row["carrier"] for row in rows] == ["group", "ipc", "folder", "delta"]
    assert all(row["update_s"] >= row["carried_s"] > 0 for row in rows)
