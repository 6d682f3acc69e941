"""Writes the game's prompts: every secret digit once, the same words before each.

python examples/guess_number/prompts.py guess/prompts.jsonl
"""

import json
import sys
from pathlib import Path

PROMPT = [{"role": "user", "content": "Guess 0123456789 + or -"}]


def main(path: Path) -> None:
    """Writes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": PROMPT, "label": str(secret)} for secret in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
