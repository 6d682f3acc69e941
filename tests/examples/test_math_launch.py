"""examples/math/run.sh, from a random model to the evaluation of a resumed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Later flags win over those in the script.
TINY = """
    --rollout-batch-size 2 --n-samples-per-prompt 2 --rollout-max-response-len 8
    --n-samples-per-eval-prompt 1 --eval-max-response-len 8
    --eval-prompt-data aime examples/math/data/aime-2024.jsonl@[0:3]
"""


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_math_launch_saves_resumes_evaluates_and_says_that_rewards_are_zero(tmp_path):
    done = subprocess.run(
        ["bash", "examples/math/run.sh", *TINY.split()],
        cwd=ROOT,
        env={**os.environ, "RUN": str(tmp_path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "every reward below is 0" in said
    assert "All 4 rewards of this batch are 0" in said
    rows = rows_of(tmp_path / "checkpoints" / "metrics.jsonl")
    rewards = {
        row["step"]: row["rollout/raw_reward"] for row in rows if "rollout/raw_reward" in row
    }
    assert rewards == {0: 0, 1: 0, 2: 0, 3: 0}
    assert [row["eval/aime"] for row in rows_of(tmp_path / "eval" / "metrics.jsonl")] == [0]
