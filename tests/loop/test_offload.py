"""A run whose optimizer state waits in host memory while it samples is the run where it stays."""

import json

from tandem.config import load_config
from tandem.runtime import run


def rows_of(tiny, folder, *words, num_rollout=2):
    """Rows of metrics without what was timed, and the names of the times."""
    run(load_config(tiny.argv(folder, *words, num_rollout=num_rollout)))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = set().union(*rows)
    kept = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    return kept, names


def test_a_run_with_naps_saves_and_resumes_as_one_without(tiny, tmp_path, capfd):
    plain, names = rows_of(tiny, tmp_path / "plain")
    assert not any("sleep" in name or "wake" in name for name in names)
    rows_of(tiny, tmp_path / "naps", "--offload-train", num_rollout=1)
    rows, names = rows_of(tiny, tmp_path / "naps", "--offload-train")
    assert rows == plain
    assert {"perf/sleep_time", "perf/wake_up_time"} <= names
    assert "waits in host memory while engines sample: --offload-train" in capfd.readouterr().err
