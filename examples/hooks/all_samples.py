"""--rollout-all-samples-process-path examples.hooks.all_samples.write_counts

Sees every judged group of a rollout, dropped ones too, and the data source.
"""

import json
from pathlib import Path
from typing import Any

from tandem.hooks import Sample


def write_counts(args: Any, all_groups: list[list[Sample]], data_source: Any) -> None:
    """Adds a line to `counts.jsonl` in the run folder."""
    row = {"groups": len(all_groups), "waiting": len(data_source)}
    with (Path(args.run_dir) / "counts.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
