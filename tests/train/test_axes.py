"""Loss, gradient norm, metrics and weights do not depend on how many processes learn, or how."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("axes_cases.py")
SEQUENCE = {"tensor": 2, "sequence_parallel": True}

PLACES = {
    2: {
        "dp2": {"companions": ["ppo", "lora"]},
        "cp2": {"context": 2, "companions": ["ppo", "lora"]},
        "tp2": {"tensor": 2},
        "tp2 sp": {**SEQUENCE, "companions": ["ppo"]},
        "pp2": {"pipeline": 2},
        "pp2 uneven": {"pipeline": 2, "decoder_first_pipeline_num_layers": 1},
        "pp2 interleaved": {"pipeline": 2, "num_virtual_stages_per_pipeline_rank": 2},
        "dp2 with experts": {"expert": 1},
        "ep2": {"expert": 2},
        "tp2 sp ep2": {**SEQUENCE, "expert": 2},
        "cp2 ep2": {"context": 2, "expert": 2},
    },
    4: {
        "tp2 pp2": {**SEQUENCE, "pipeline": 2, "saves": ["grpo", "gspo"]},
        "dp2 cp2": {"context": 2, "companions": ["ppo", "lora"], "saves": ["ppo", "lora"]},
        "dp2 tp2": {"tensor": 2},
        "dp2 pp2": {"pipeline": 2},
        "dp2 ep2": {"expert": 2, "saves": ["experts"]},
        "dp2 tp2 ep2 etp2": {**SEQUENCE, "expert": 2, "expert_tensor": 2},
        "pp2 ep2": {"pipeline": 2, "expert": 2},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where every process of a world of two, and of four, has written down what it found."""
    folder = tmp_path_factory.mktemp("axes")
    line = [sys.executable, str(SCRIPT), str(folder), json.dumps(PLACES)]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize(("world", "where"), [(w, name) for w in PLACES for name in PLACES[w]])
def test_several_processes_learn_what_one_does(folder, world, where):
    for rank in range(world):
        lines = (folder / f"{world}.{rank}.txt").read_text().splitlines()
        assert f"ran {where}" in lines, f"process {rank} did not get there"
        wrong = [line for line in lines if line.startswith(f"{where},")]
        assert not wrong, f"process {rank}:\n" + "\n".join(wrong[:20])
