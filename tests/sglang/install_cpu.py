"""Installs a stock SGLang that runs without a GPU, in an environment of its own.

    python tests/sglang/install_cpu.py FOLDER

FOLDER/python is then an interpreter for `--sglang-python`. SGLang pins another torch than ours and
kernels for CUDA, so it is installed without what it asks for, and with what it needs here: 2.7 GB
with a torch for the CPU, about four minutes. Nothing of it is changed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SGLANG = ("sglang==0.5.15.post1", "compressed-tensors==0.20.0")
RUNNER = """#!/bin/sh
SGLANG_USE_CPU_ENGINE=1 HF_HUB_OFFLINE=1 exec {python} "$@"
"""


def install(folder: Path) -> None:
    venv, runner = folder / "venv", folder / "python"
    if runner.is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-r", str(HERE / "cpu.txt")], check=True)
    subprocess.run([*pip, "--no-deps", *SGLANG], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "torchvision").mkdir()
    shutil.copy(HERE / "stand_in.py", site / "torchvision" / "__init__.py")
    runner.write_text(RUNNER.format(python=python))
    runner.chmod(0o755)


if __name__ == "__main__":
    install(Path(sys.argv[1]).resolve())
