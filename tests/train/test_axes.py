"""Loss, gradient norm, metrics and weights do not depend on how many processes learn, or how."""

import json
import os
import subprocess
import sys
import time
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
        "tp2 pp2": {**SEQUENCE, "pipeline": 2, "saves": True},
        "dp2 cp2": {"context": 2, "companions": ["ppo", "lora"], "saves": True},
        "dp2 tp2": {"tensor": 2},
        "dp2 pp2": {"pipeline": 2},
        "dp2 ep2": {"expert": 2, "saves": True},
        "dp2 tp2 ep2 etp2": {**SEQUENCE, "expert": 2, "expert_tensor": 2},
        "pp2 ep2": {"pipeline": 2, "expert": 2},
    },
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> dict[int, list[list[str]]]:
    """What every process of a world of two, and of four, has to say."""
    return {world: run(world, tmp_path_factory.mktemp(f"world{world}")) for world in PLACES}


def run(world: int, folder: Path) -> list[list[str]]:
    """The lines of every process, all of which have ended."""
    line = [str(world), str(folder), json.dumps(PLACES[world])]
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), *line],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=(folder / f"{rank}.err").open("w"),
        )
        for rank in range(world)
    ]
    while any(process.poll() is None for process in running):
        if any(process.poll() for process in running):
            for process in running:  # the others would wait for the one that failed
                process.kill()
        time.sleep(0.1)
    errors = [(folder / f"{rank}.err").read_text()[-3000:] for rank in range(world)]
    assert not any(process.returncode for process in running), "\n".join(errors)
    return [(folder / f"{rank}.txt").read_text().splitlines() for rank in range(world)]


@pytest.mark.parametrize(("world", "where"), [(w, name) for w in PLACES for name in PLACES[w]])
def test_several_processes_learn_what_one_does(findings, world, where):
    for rank, lines in enumerate(findings[world]):
        assert f"ran {where}" in lines, f"process {rank} did not get there"
        wrong = [line for line in lines if line.startswith(f"{where},")]
        assert not wrong, f"process {rank}:\n" + "\n".join(wrong[:20])
