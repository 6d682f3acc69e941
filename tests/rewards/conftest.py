"""Makes the modules beside the tests importable, as a user's hooks are."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
