"""No flag is ignored: every setting is read by a room, derived from, or spoken of."""

import re
from pathlib import Path

import pytest

from tandem.config.eval_sets import KNOBS, OWN, source_of
from tandem.config.fields import knobs
from tandem.config.not_yet import ROWS

PACKAGE = Path(__file__).parents[2] / "src" / "tandem"
COMING = {name for row in ROWS for name in row.names.split()}
READ_BY_CONFIG = (
    "resolve.py",
    "roles.py",
    "eval_sets.py",
    "no_effect.py",
    "overlay.py",
    "not_yet.py",
)
READ_BY_SETS = {source_of(key) for key in KNOBS if key not in OWN}
ONE_VALUE_ONLY = {"optimizer"}  # its choices leave nothing to decide


@pytest.fixture(scope="module")
def rooms() -> str:
    """All code outside config."""
    files = [path for path in PACKAGE.rglob("*.py") if "config" not in path.parts]
    return "\n".join(path.read_text() for path in files)


@pytest.fixture(scope="module")
def our_own() -> str:
    return "\n".join((PACKAGE / "config" / name).read_text() for name in READ_BY_CONFIG)


@pytest.mark.parametrize("name", sorted(set(knobs()) - COMING - READ_BY_SETS - ONE_VALUE_ONLY))
def test_every_setting_is_used(name, rooms, our_own):
    is_read = re.search(rf"\.{name}\b", rooms)
    is_ours = re.search(rf"\b{name}\b", our_own)
    assert is_read or is_ours, (
        f"nothing reads {name}: use it, or add a row to not_yet.py or no_effect.py"
    )
