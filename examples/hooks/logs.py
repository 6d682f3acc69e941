"""--custom-rollout-log-function-path examples.hooks.logs.log_rollout
--custom-eval-rollout-log-function-path examples.hooks.logs.log_evaluation

Log in a way of your own. True says that the metrics handed in need not be logged again; the run
folder's own files are written in any case.
"""

import json
from pathlib import Path
from typing import Any

from tandem.hooks import Sample


def log_rollout(
    rollout_id: int,
    args: Any,
    samples: list[Sample],
    extra_metrics: dict[str, float],
    rollout_time: float,
) -> bool:
    """Adds a line to `mine.jsonl` in the run folder."""
    write(args, {"rollout": rollout_id, "samples": len(samples), "metrics": len(extra_metrics)})
    return False


def log_evaluation(
    rollout_id: int, args: Any, data: dict[str, dict[str, list]], extra_metrics: dict[str, float]
) -> bool:
    """Adds a line to `mine.jsonl` in the run folder."""
    sizes = {name: len(of_set["samples"]) for name, of_set in data.items()}
    write(args, {"evaluation": rollout_id, "sets": sizes})
    return False


def write(args: Any, row: dict[str, Any]) -> None:
    """Adds the line."""
    with (Path(args.run_dir) / "mine.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
