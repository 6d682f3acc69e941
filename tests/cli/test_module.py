"""The package as a program."""

import subprocess
import sys

from tandem import __version__


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "tandem", "--version"], capture_output=True)
    assert done.returncode == 0 and done.stdout.decode().strip() == f"tandem {__version__}"
